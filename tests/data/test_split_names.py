"""Which split a file is for, by its name, and whether that counts."""

import pytest

from loratune.data.sources.split_names import detect_split, detect_splits, strip_split_name


@pytest.mark.parametrize(
    ("file", "split", "name"),
    [
        ("train-00000-of-00001.parquet", "train", ""),
        ("validation.csv", "val", ""),
        ("my_dev.json", "val", "my"),
        ("test.jsonl", "test", ""),
        ("Faq Training.tsv", "train", "Faq"),
        ("faq.eval.jsonl", "val", "faq"),
        ("gsm8k-test-00000-of-00002.parquet", "test", "gsm8k"),
        ("trainset.csv", "train", ""),
        ("testdata.csv", "test", ""),
        ("valid2.jsonl", "val", ""),
        # The last word counts: a part of the training data that is set apart.
        ("train_dev.jsonl", "val", ""),
        ("test_run_train.jsonl", "train", "run"),
        ("databricks-dolly-15k.jsonl", None, "databricks-dolly-15k"),
        ("latest.csv", None, "latest"),
        ("contest.csv", None, "contest"),
        ("retrain.csv", None, "retrain"),
        ("device.csv", None, "device"),
    ],
)
def test_split_is_detected_in_the_file_name(file, split, name):
    assert detect_split(file) == split
    assert strip_split_name(file.rpartition(".")[0]) == name


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["train.jsonl", "valid.jsonl"], ["train", "val"]),
        (["train.jsonl", "test.jsonl"], ["train", "test"]),
        (["faq.csv", "train.jsonl", "dev.jsonl"], [None, "train", "val"]),
        (["faq.csv", "test.jsonl"], [None, "test"]),
        (["dev.jsonl", "test.jsonl"], ["val", "test"]),
        (["train.jsonl"], [None]),
        (["test.jsonl"], [None]),
        (["test-1.jsonl", "test-2.jsonl"], [None, None]),
        (["train.jsonl", "faq.csv"], [None, None]),
        ([], []),
    ],
)
def test_detected_splits_count_only_if_training_data_remains(files, splits):
    assert detect_splits(files) == splits


def test_other_data_counts_as_training_data():
    assert detect_splits(["test.jsonl"], beside=True) == ["test"]
    assert detect_splits(["train.jsonl"], beside=True) == [None]
