"""What `loratune train` refuses before it begins, and what it says."""

import json

import pytest
from safetensors.torch import load_file, save_file

from support.training_runs import assert_refused, train


def test_mistakes_are_explained_all_at_once(workplace, capsys):
    told = assert_refused(capsys, "--learing-rate", "3", "--rank", "0", "--budget", "soon", "--steps", "4")
    assert "did you mean --learning-rate?" in told
    assert "--rank: input should be greater than or equal to 1" in told
    assert "write it like 90s, 10m or 1h30m" in told
    assert "--steps and --budget contradict each other" in told
    assert not (workplace / "runs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--data", "nowhere"],
            "nowhere/train.jsonl: there is no such file; make it with `loratune prepare`",
        ),
        (["--model", "./nowhere"], "there is no such folder"),
        (["--model", "nowhere.gguf"], "there is no such file"),
        (["--model", "gpt5"], "no known short name"),
        (["--config", "nowhere.toml"], "nowhere.toml: there is no such file"),
        (["--resume"], "there is no run in runs/"),
        (["--targets", "c_attn"], "this model has no c_attn"),
        (
            ["--max-tokens", "300", "--micro-tokens", "200"],
            "--max-tokens 300 is more than --micro-tokens 200",
        ),
        (["--device", "cuda"], "no CUDA device"),
        (["--epochs", "inf"], "--epochs: input should be a finite number"),
        (["--learning-rate", "nan"], "--learning-rate: input should be a finite number"),
        (["--seed", "99999999999"], "--seed: input should be less than 4294967296"),
        (["--run", ".."], "--run: string should match pattern"),
        (["--out", "data/train.jsonl"], "--out data/train.jsonl: this is a file; a folder is needed"),
        (["--out", "data/train.jsonl/adapter"], "train.jsonl is a file, not a folder"),
    ],
)
def test_bad_input(workplace, capsys, options, message):
    assert message in assert_refused(capsys, "--steps", "2", *options)
    assert not (workplace / "model").exists()


def test_broken_data_is_refused_with_file_and_line(workplace, capsys):
    path = workplace / "data" / "train.jsonl"
    good = path.read_text().splitlines()
    for broken, message in [
        ('{"instruction": "x"', "line 3"),
        ('{"instruction": "x", "input": ""}', "output"),
        ("[1]", "line 3"),
    ]:
        path.write_text("\n".join([*good[:2], broken, *good[3:]]))
        told = assert_refused(capsys, "--steps", "2")
        assert "train.jsonl" in told and message in told
    path.write_text("")
    assert "empty" in assert_refused(capsys, "--steps", "2")


def test_pickled_weights_are_refused(workplace, capsys):
    (workplace / "base" / "model.safetensors").rename(workplace / "base" / "pytorch_model.bin")
    assert "is a pickle" in assert_refused(capsys, "--steps", "2")


def test_a_model_whose_files_lack_weights_is_refused(workplace, capsys):
    path = workplace / "base" / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    assert "lack 1 of the model's weights, such as model.layers.0.mlp.up_proj.weight" in assert_refused(
        capsys, "--steps", "2"
    )


def test_a_tokenizer_with_more_entries_than_the_model_is_refused(workplace, capsys):
    path = workplace / "base" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["more"] = 257
    path.write_text(json.dumps(tokenizer))
    assert "its tokenizer has ids up to 257, the model only up to 256" in assert_refused(
        capsys, "--steps", "2"
    )


def test_a_token_that_the_model_does_not_have_is_text_in_the_data(workplace):
    path, rows = workplace / "base" / "tokenizer.json", workplace / "data" / "train.jsonl"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 257, "content": "<|more|>"})
    path.write_text(json.dumps(tokenizer))
    rows.write_text(
        rows.read_text()
        + json.dumps({"instruction": "Say <|more|>.", "input": "", "output": "<|more|>"})
        + "\n"
    )
    assert train("--steps", "2") == 0


@pytest.mark.parametrize("broken", ["config.json", "tokenizer.json"])
def test_broken_model_files_are_refused(workplace, capsys, broken):
    (workplace / "base" / broken).write_text("[]")
    assert assert_refused(capsys, "--steps", "2").startswith("error: ")


def test_rows_longer_than_the_positions_are_refused_before_training(workplace, capsys):
    long = ["--max-tokens", "600", "--micro-tokens", "600", "--batch-tokens", "600"]
    assert "this model has only 512 positions" in assert_refused(capsys, "--steps", "2", *long)
