"""End markers that a data set has in its texts: taken off the ends of outputs, counted and said; anywhere
else they are text.
"""

import json

import pytest

from loratune.cli.main import main
from loratune.models.tokenizer import Tokenizer
from support.evaluating import evaluate, measured, write_rows, written
from support.training_runs import TRAIN, are_same_tensors, load_adapter_tensors

THINGS = [
    "key",
    "lamp",
    "bucket",
    "ladder",
    "kettle",
    "whistle",
    "marble",
    "boot",
    "tent",
    "oven",
    "flute",
    "anchor",
]
ROWS = [
    {
        "id": str(number),
        "source": "mine",
        "instruction": f"Where is the {thing}?",
        "output": f"It is in room {number}.",
    }
    for number, thing in enumerate(THINGS)
]
MARKED = [
    {**row, "output": row["output"] + end}
    for row, end in zip(ROWS, ["<|endoftext|>", "<|end|>\n"] * 6, strict=True)
]
NOTHING = {"id": "none", "source": "mine", "instruction": "Say nothing.", "output": "<|endoftext|>"}
TOLD = "outputs end with an end marker such as <|endoftext|>; it is taken off"


def write(place, train, val=ROWS[:2]) -> None:
    for name, rows in (("train", train), ("val", val)):
        (place / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def trained(place, train, *options: str) -> dict:
    write(place, train)
    assert main([*TRAIN, "--steps", "2", "--validations", "1", "--json", *options]) == 0
    return load_adapter_tensors(place / options[options.index("--out") + 1])


def test_training_is_the_same_with_and_without_them(workplace, capsys):
    marked = trained(workplace, [*MARKED, NOTHING], "--run", "one", "--out", "marked")
    captured = capsys.readouterr()
    assert json.loads(captured.out)["rows"]["mine"] == {
        "rows": 13,
        "inputs_cut": 0,
        "turns_cut": 0,
        "responses_cut": 0,
        "dropped": 1,
        "end_markers_removed": 13,
        "answers": 0,
        "answers_cut": 0,
        "rows_split": 0,
    }
    told = " ".join(captured.err.split())
    assert f"mine: 13 {TOLD}" in told
    assert "of 13 rows, 1 dropped" in told and "13 end markers removed" not in told
    assert are_same_tensors(marked, trained(workplace, ROWS, "--run", "two", "--out", "plain"))
    assert TOLD not in capsys.readouterr().err


def test_they_are_no_reason_for_a_warning(workplace, capsys):
    trained(workplace, MARKED, "--run", "one", "--out", "marked")
    assert not [line for line in capsys.readouterr().err.splitlines() if "warning" in line and "mine" in line]


def test_preparation_counts_them_and_leaves_the_files_whole(workplace, capsys):
    (workplace / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MARKED))
    options = ["--data", "mine.jsonl", "--model", "base", "--out", "new", "--val-fraction", "0.3", "--json"]
    assert main(["prepare", *options]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["sources"]["mine"]["end_markers_removed"] == 12
    assert f"mine: 12 {TOLD}" in " ".join(captured.err.split())
    lines = [line for path in (workplace / "new").glob("*.jsonl") for line in path.read_text().splitlines()]
    assert sorted(json.loads(line)["output"] for line in lines) == sorted(row["output"] for row in MARKED)


def test_preview_shows_rows_without_them(workplace, capsys):
    write(workplace, [*MARKED[:2], NOTHING, {**ROWS[2], "output": "Not <|end|> yet"}])
    options = ["preview", "--model", "base", "--data", "data", "--rows", "9", "--max-tokens", "200"]
    assert main([*options, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["sources"]["mine"]["end_markers_removed"] == 3 and result["sources"]["mine"]["dropped"] == 1
    tokenizer = Tokenizer.load(workplace / "base")
    for row, text in zip(
        result["rows"], ["It is in room 0.", "It is in room 1.", None, "Not <|end|> yet"], strict=True
    ):
        learned = [token for token, mask in zip(row["ids"], row["mask"], strict=True) if mask]
        assert learned == ([*tokenizer.encode(text), tokenizer.eos_id] if text else [])
        assert row["dropped"] == (text is None)
    assert main(options) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "dropped: the output is nothing but an end marker" in shown
        and "end markers taken off outputs" in shown
    )
    assert main([*options, "--cut"]) == 0
    assert "1. none" in capsys.readouterr().out


def test_evaluation_wants_what_training_learned(place, capsys):
    write_rows(place, MARKED)
    marked = measured(place, "--generate", "3")
    assert f"mine: 12 {TOLD}" in " ".join(capsys.readouterr().out.split())
    assert marked["shortened"]["mine"]["end_markers_removed"] == 12
    assert [one["wanted"] for one in marked["examples"]] == [row["output"] for row in ROWS]
    write_rows(place, ROWS)
    assert evaluate("--generate", "3") == 0
    plain = written(place)
    for part in ("base", "base_bare", "tuned", "difference"):
        assert marked[part] == plain[part]


@pytest.mark.parametrize("name", ["<|end|>", "<|end|>\n### Response:\n"])
def test_a_marker_in_a_question_ends_nothing(workplace, capsys, name):
    write(workplace, [{**ROWS[0], "instruction": f"What is {name}?", "input": f"It ends{name}"}, *ROWS[1:]])
    assert main(["preview", "--model", "base", "--data", "data", "--rows", "99", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["rows"][0]
    assert row["id"] == "0" and row["ids"].count(Tokenizer.load(workplace / "base").eos_id) == 1
