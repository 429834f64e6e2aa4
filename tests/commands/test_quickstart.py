"""`loratune quickstart` as a whole, on a model of a few thousand numbers and the first rows of the shipped
data.
"""

import json

import pytest
from transformers import LlamaConfig

from loratune.cli.main import main
from loratune.data import snapshot
from support.small_models import GROUPED, SMALL, save_model


@pytest.fixture
def place(tmp_path, cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORATUNE_CACHE", str(cache))
    save_model(
        tmp_path / "base",
        LlamaConfig(**SMALL | GROUPED | {"max_position_embeddings": 1024}, tie_word_embeddings=True),
    )
    (tmp_path / "test.json").write_text('["Name a colour.", "What is a bond?"]')
    whole = snapshot.read
    monkeypatch.setattr(snapshot, "read", lambda name: whole(name)[:120])
    return tmp_path


def quickstart(*options: str) -> int:
    return main(["quickstart", "--model", "base", "--budget", "2s", "--threads", "1", *options])


def test_the_main_job_from_data_to_comparison(place, capsys):
    assert quickstart("--json") == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert {"prepare", "train", "evaluate", "compare"} <= result.keys()
    made = place / "quickstart"
    for name in (
        "data/train.jsonl",
        "data/val.jsonl",
        "data/test.jsonl",
        "evaluation.json",
        "model_comparison.html",
    ):
        assert (made / name).is_file()
    assert (made / "model/gpt2_lora_finetuned/adapter_model.safetensors").is_file()
    assert [row["prompt"] for row in json.loads((made / "model_comparison.json").read_text())] == [
        "Name a colour.",
        "What is a bond?",
    ]
    measured = json.loads((made / "evaluation.json").read_text())
    assert measured["tuned"]["nll"] < measured["base"]["nll"]
    assert {"dolly", "finqa"} == measured["by_source"].keys()
    assert (
        f"{measured['base']['nll']:.3f}" in printed.err and f"{measured['tuned']['nll']:.3f}" in printed.err
    )


def test_a_folder_without_prompts_is_no_obstacle(place, capsys):
    (place / "test.json").unlink()
    assert quickstart("--dry-run", "--json") == 0
    assert {"dolly", "finqa", "loratune's own test.json"} == json.loads(capsys.readouterr().out)[
        "reads"
    ].keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompts", "nowhere.json"], "nowhere.json: there is no such file"),
        (["--prompts", "base/config.json"], "a JSON list of texts is needed"),
        (["--model", "./nowhere"], "there is no such folder"),
        (["--budget", "soon"], "write it like 90s, 10m or 1h30m"),
    ],
)
def test_bad_input(place, capsys, options, message):
    assert quickstart(*options) == 2
    assert message in capsys.readouterr().err
    assert not (place / "quickstart").exists()
