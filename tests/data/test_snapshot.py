"""The shipped data is complete, and nothing held out leaks into training."""

import lzma
import re
from collections import Counter
from importlib import resources

import numpy as np
import pytest
from scipy import sparse

from loratune.data import snapshot
from loratune.data.compared_texts import normalize_text
from loratune.data.dedup import INPUT_SIMILARITY, INSTRUCTION_SIMILARITY, build_word_set
from loratune.data.sources.dolly import load_dolly
from loratune.data.split_sources import split_sources
from loratune.tasks.finqa.evidence import compute_fact_recall, replace_with_gold_facts
from loratune.tasks.finqa.facts import build_page_facts
from loratune.tasks.finqa.records import FinqaOptions
from loratune.tasks.finqa.scoring import asks_for_program
from loratune.tasks.finqa.source import load_finqa

SPLITS = ("train", "val", "test")


def count_words(texts):
    """About as many as tokens, and much faster."""
    return [len(re.findall(r"\w+|\S", text)) for text in texts]


@pytest.fixture(scope="module")
def records_by_split():
    loaded = [load_dolly(from_hub=False), *load_finqa("snapshot", FinqaOptions("program", 320, count_words))]
    return split_sources(loaded, seed=0, val_fraction=0.05)[0]


def select_records(records_by_split, source: str, split: str):
    return [record for record in records_by_split[split] if record.source == source]


def test_snapshot_matches_sources_md():
    sources_md = resources.files("loratune.data.snapshot").joinpath("SOURCES.md").read_text()
    assert len(snapshot.read("dolly")) == 15_003
    for split in ("train", "dev", "test"):
        rows = snapshot.read(f"finqa_{split}")
        pages = {row["id"].rpartition("-")[0] for row in rows}
        counts = (
            len(rows),
            len(pages),
            *(sum(bool(row[field]) for row in rows) for field in ("program", "gold_inds")),
        )
        (line,) = (line for line in sources_md.splitlines() if line.startswith(f"| {split} |"))
        assert [int(cell.replace(",", "")) for cell in line.split("|")[3:-1]] == list(counts)


def test_snapshot_is_small_and_includes_its_licences():
    folder = resources.files("loratune.data.snapshot")
    assert sum(len(file.read_bytes()) for file in folder.iterdir() if file.name.endswith(".xz")) < 5e6
    licences = folder.joinpath("LICENCES.md").read_text()
    assert (
        "Creative Commons Attribution-ShareAlike 3.0" in licences
        and "Permission is hereby granted" in licences
    )
    assert all(lzma.decompress(file.read_bytes()) for file in folder.iterdir() if file.name.endswith(".xz"))


def test_gold_facts_are_facts_of_their_page():
    for split in ("train", "dev", "test"):
        for row in snapshot.read(f"finqa_{split}"):
            facts = build_page_facts(row["pre_text"], row["post_text"], row["table"])
            assert all(facts[name].strip() for name in row["gold_inds"] or []), row["id"]


def test_every_row_of_dolly_and_finqa_is_used(records_by_split):
    assert sum(len(select_records(records_by_split, "dolly", split)) for split in SPLITS) == 15_003 - 8
    assert len(select_records(records_by_split, "finqa", "train")) == pytest.approx(4400, abs=30)
    assert all(
        400 < len(select_records(records_by_split, "dolly", split)) < 1100 for split in ("val", "test")
    )


def test_no_group_id_or_content_is_in_two_splits(records_by_split):
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        for key in (
            lambda record: record.group,
            lambda record: record.id,
            lambda record: (normalize_text(record.instruction), normalize_text(record.input)),
            lambda record: (
                (record.source, normalize_text(record.input))
                if record.source == "dolly" and record.input
                else record.id
            ),
        ):
            assert not set(map(key, records_by_split[one])) & set(map(key, records_by_split[other])), (
                one,
                other,
            )


def test_held_out_finqa_splits_have_all_ids(records_by_split):
    for split, name, ids in (("val", "dev", 883), ("test", "test", 1147)):
        records, rows = select_records(records_by_split, "finqa", split), snapshot.read(f"finqa_{name}")
        assert [record.id for record in records] == [row["id"] for row in rows]
        assert len(records) == ids
        assert {record.id for record in records if not record.has_target} == {
            row["id"] for row in rows if not row["program"]
        }
        assert len(records) == len({record.id for record in records})
        assert {record.meta["split_ids"] for record in records} == {ids}


def test_every_training_row_has_a_target(records_by_split):
    assert all(record.has_target for record in records_by_split["train"]) and all(
        record.has_target for record in records_by_split["val"]
    )
    assert sum(not record.has_target for record in records_by_split["test"]) == 15


def test_no_held_out_finqa_question_or_page_is_in_training(records_by_split):
    """Word for word, and against all held-out questions, those left out for want of a program, too."""
    official = [row for name in ("dev", "test") for row in snapshot.read(f"finqa_{name}")]
    records = select_records(records_by_split, "finqa", "train")
    assert not {normalize_text(row["question"]) for row in official} & {
        normalize_text(record.instruction.rpartition("\n")[0]) for record in records
    }
    assert not {row["id"] for row in official} & {record.id for record in records}
    assert not {row["id"].rpartition("-")[0] for row in official} & {
        record.meta["page"] for record in records
    }


@pytest.mark.parametrize(
    ("field", "similarity"), [("instruction", INSTRUCTION_SIMILARITY), ("input", INPUT_SIMILARITY)]
)
def test_no_held_out_dolly_row_is_a_near_duplicate_of_training(records_by_split, field, similarity):
    """Compares all pairs, unlike the code that groups."""
    sets = {
        split: [
            build_word_set(getattr(record, field))
            for record in select_records(records_by_split, "dolly", split)
        ]
        for split in SPLITS
    }
    sets = {split: [words for words in split_sets if words] for split, split_sets in sets.items()}
    column = {
        word: number
        for number, word in enumerate(
            sorted(set().union(*(words for split_sets in sets.values() for words in split_sets)))
        )
    }
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        left, right = (
            build_matrix([[column[word] for word in words] for words in sets[split]], len(column))
            for split in (one, other)
        )
        shared = (left @ right.T).tocoo()
        sizes = np.diff(left.indptr)[shared.row] + np.diff(right.indptr)[shared.col] - shared.data
        assert (shared.data / sizes).max() < similarity


def build_matrix(rows, columns: int) -> sparse.csr_matrix:
    numbers = np.concatenate([np.array(row) for row in rows])
    return sparse.csr_matrix(
        (np.ones(len(numbers)), numbers, np.cumsum([0, *map(len, rows)])), shape=(len(rows), columns)
    )


def test_groups_are_small(records_by_split):
    sizes = Counter(
        record.group for split in SPLITS for record in select_records(records_by_split, "dolly", split)
    )
    assert max(sizes.values()) < 60
    assert len(sizes) > 13_500


def test_held_out_finqa_rows_have_retrieved_facts_and_scoring_data(records_by_split):
    for split in ("val", "test"):
        for record in select_records(records_by_split, "finqa", split):
            meta = record.meta
            assert meta["facts"] == "retrieved"
            assert meta["table"] and meta["page"] == record.id.rpartition("-")[0] and asks_for_program(record)
            expected = (
                (meta["program"], None) if record.has_target else (str(meta["exe_ans"]), meta["program"])
            )
            assert (record.output, None) == expected
            assert meta["answer"] or meta["exe_ans"] is not None
    recall = compute_fact_recall(records_by_split["val"])
    assert recall["rows"] > 800 and recall["all_gold_facts"] > 0.88 and recall["recall_at_3"] > 0.79


def test_gold_facts_are_annotated_and_in_page_order(records_by_split):
    known = 0
    for split, name in (("val", "dev"), ("test", "test")):
        rows = {row["id"]: row for row in snapshot.read(f"finqa_{name}")}
        for record in select_records(records_by_split, "finqa", split):
            row, gold = rows[record.id], replace_with_gold_facts(record)
            facts = build_page_facts(row["pre_text"], row["post_text"], row["table"])
            expected = [text for fact, text in facts.items() if fact in (row["gold_inds"] or [])]
            assert (gold.input.split("\n") if gold else []) == expected
            known += bool(gold)
    assert known == pytest.approx(854 + 122, abs=10)


def test_finqa_training_rows_have_their_gold_facts(records_by_split):
    gold = {row["id"]: row for row in snapshot.read("finqa_train") if row["gold_inds"]}
    complete = total = 0
    for record in select_records(records_by_split, "finqa", "train"):
        if row := gold.get(record.id):
            facts = build_page_facts(row["pre_text"], row["post_text"], row["table"])
            total += 1
            complete += all(facts[name] in record.input.split("\n") for name in row["gold_inds"])
            assert record.meta["facts"] == "gold"
    assert total > 900 and complete / total > 0.95  # a few pages' gold facts alone are longer than the limit
