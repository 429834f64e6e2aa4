"""--dry-run of everything that takes long: it tells, and it writes nothing."""

import json

import pytest
from transformers import LlamaConfig

from loratune.cli.arguments import COMMANDS
from loratune.cli.main import main
from loratune.commands.dry_run import format_duration
from loratune.config.shared import DryRunConfig
from loratune.data import snapshot
from loratune.evaluation import forgetting
from support.evaluating import PROSE
from support.small_models import GROUPED, SMALL, save_model
from support.tuned_models import save_tuned

ROWS = [
    {"instruction": f"Count to {n}.", "input": "", "output": "1 " * n, "source": "dolly"} for n in range(2, 9)
]


@pytest.fixture
def place(tmp_path, cache, monkeypatch):
    """A folder with a base, an adapter, prompts and held-out rows; also the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORATUNE_CACHE", str(cache))
    monkeypatch.setattr(forgetting, "BUILT_IN_PROSE", PROSE)
    whole = snapshot.read
    monkeypatch.setattr(snapshot, "read", lambda name: whole(name)[:80])
    save_model(
        tmp_path / "base",
        LlamaConfig(**SMALL | GROUPED | {"max_position_embeddings": 1024}, tie_word_embeddings=True),
    )
    save_tuned(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "test.json").write_text('["Name a colour.", "What is a bond?"]')
    return tmp_path


def contents(place) -> dict:
    return {path: path.stat().st_mtime_ns for path in place.rglob("*")}


COMMAND_LINES = {
    "prepare": ["prepare", "--model", "base", "--source", "snapshot", "--out", "data"],
    "evaluate": ["evaluate", "--adapter", "adapter", "--max-new-tokens", "10", "--threads", "1"],
    "compare": ["compare", "--adapter", "adapter", "--max-new-tokens", "10", "--threads", "1"],
    "quickstart": ["quickstart", "--model", "base", "--budget", "30s", "--threads", "1"],
}


def test_all_that_have_it_are_tried_here_or_in_the_tests_of_train():
    assert {name for name, fields in COMMANDS.items() if issubclass(fields, DryRunConfig)} == {
        *COMMAND_LINES,
        "train",
    }


@pytest.mark.parametrize("command", COMMAND_LINES)
def test_nothing_is_written(place, command, capsys):
    before = contents(place)
    assert main([*COMMAND_LINES[command], "--dry-run"]) == 0
    assert contents(place) == before
    shown = capsys.readouterr().out
    assert "Would read" in shown and "Would write" in shown and "Nothing was written" in shown


def planned(command: str, capsys, *options: str) -> dict:
    assert main([*COMMAND_LINES[command], "--dry-run", "--json", *options]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["dry_run"] is True
    return plan


def test_prepare(place, capsys):
    plan = planned("prepare", capsys)
    assert plan["reads"] == {
        "dolly": "the shipped snapshot, 80 rows",
        "finqa": "the shipped snapshot, 240 rows",
    }
    names = ("train.jsonl", "val.jsonl", "test.jsonl", "prepare_report.json")
    assert plan["writes"] == [f"data/{name}" for name in names] and plan["overwrites"] == ["data/test.jsonl"]
    assert plan["about_seconds"] > 0
    assert main(COMMAND_LINES["prepare"]) == 0
    assert all((place / path).is_file() for path in plan["writes"])


def test_prepare_does_not_guess_at_what_is_not_here(place, capsys):
    plan = planned("prepare", capsys, "--data", "dolly", "owner/name")
    assert plan["reads"]["owner/name"] == "the Hugging Face hub, not downloaded yet"
    assert plan["about_seconds"] is None


def test_evaluate_and_compare(place, capsys):
    plan = planned("evaluate", capsys, "--generate", "3")
    assert plan["reads"]["data/test.jsonl"] == "7 rows, 3 of them to answer, by 3 models"
    assert plan["overwrites"] == [] and plan["about_seconds"] >= 0  # tenths; this model is tiny
    assert main(COMMAND_LINES["evaluate"]) == 0
    capsys.readouterr()
    assert planned("evaluate", capsys)["overwrites"] == plan["writes"] == ["evaluation.json"]
    compared = planned("compare", capsys, "--format", "both")
    assert compared["reads"] == {"test.json": "2 prompts, two answers of at most 10 tokens to each"}
    assert compared["writes"] == ["model_comparison.json", "model_comparison.html", "model_comparison.md"]


def test_quickstart_takes_its_budget_and_more(place, capsys):
    plan = planned("quickstart", capsys)
    assert plan["about_seconds"] > 30
    assert {"dolly", "finqa", "test.json"} == plan["reads"].keys()
    assert "quickstart/evaluation.json" in plan["writes"] and "quickstart/data/train.jsonl" in plan["writes"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["compare", "--adapter", "adapter", "--prompts", "none.json"], "none.json: there is no such file"),
        (["evaluate", "--adapter", "none"], "--adapter none: there is no such folder"),
        (["evaluate", "--adapter", "adapter", "--out", "base"], "--out base: this is a folder"),
        (["prepare", "--model", "base", "--data", "none.jsonl"], "none.jsonl"),
    ],
)
def test_mistakes_are_found_by_a_dry_run_too(place, capsys, line, message):
    assert main([*line, "--dry-run"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "words"), [(3.4, "3 s"), (89, "89 s"), (100, "2 min"), (5000, "83 min"), (9000, "2.5 h")]
)
def test_times_in_words(seconds, words):
    assert format_duration(seconds) == words
