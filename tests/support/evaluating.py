"""A place where `loratune evaluate` can be run, on a model of a few thousand numbers."""

import json
from dataclasses import replace

from loratune.cli.main import main
from loratune.evaluation import forgetting
from loratune.model import load_tuned_model
from loratune.tasks.registry import BUILT_IN_PROSE
from support.tuned_models import save_tuned

PROSE = replace(
    BUILT_IN_PROSE, read=lambda: ["net sales rose in 2010 .", "the company has no debt ."]
)  # short
TABLE = [["", "2010", "2009"], ["net sales", "12", "30"]]
PROGRAM = "subtract(30, 12), divide(#0, 12)"


def finqa_row(number: int, **meta) -> dict:
    meta = {"facts": "retrieved", "program": PROGRAM, "exe_ans": 1.5, "table": TABLE, **meta}
    return {
        "instruction": f"Question {number}?",
        "input": "facts",
        "output": PROGRAM,
        "source": "finqa",
        "meta": meta,
    }


COUNTING = [(f"Count to {n}.", " ".join(map(str, range(n)))) for n in range(2, 9)]
KINDS = ["open_qa", "open_qa", "brainstorming", "open_qa", "closed_qa", "brainstorming", ""]
ROWS = [
    {
        "instruction": asked,
        "input": "",
        "output": told,
        "source": "dolly",
        "meta": {"category": kind} if kind else {},
    }
    for (asked, told), kind in zip(COUNTING, KINDS, strict=True)
]
ROWS += [finqa_row(number) for number in range(3)]


def tokenizer_of(place):
    return load_tuned_model([place / "adapter"]).tokenizer


def make_place(place, monkeypatch) -> None:
    """Put a base, an adapter and held-out rows into a folder, and make it the working directory."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("LORATUNE_CACHE", str(place / "cache"))
    monkeypatch.setattr(forgetting, "BUILT_IN_PROSE", PROSE)
    save_tuned(place)
    write_rows(place, ROWS)


def write_rows(place, rows) -> None:
    (place / "data").mkdir(exist_ok=True)
    (place / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def evaluate(*options: str) -> int:
    adapter = [] if "--adapter" in options else ["--adapter", "adapter"]
    return main(["evaluate", *adapter, "--max-new-tokens", "10", "--threads", "1", *options])


def measured(place, *options: str) -> dict:
    assert evaluate(*options) == 0
    return written(place)


def written(place) -> dict:
    return json.loads((place / "evaluation.json").read_text())
