"""`loratune preview` as a user meets it."""

import json
import re

import pytest
import torch

from loratune.cli.main import main
from loratune.data.example import Example
from loratune.data.packing import pack
from loratune.models.tokenizer import Tokenizer
from support.small_models import save_model

ROWS = [
    {"instruction": "Name it.", "input": "", "output": "A bond.\nYes [red]", "source": "dolly", "id": "a"},
    {"instruction": "Shorten it.", "input": "word " * 60, "output": "Short.", "source": "dolly", "id": "b"},
    {"instruction": "Go on.", "input": "", "output": "again " * 60, "source": "dolly", "id": "c"},
    {"instruction": "Do. " * 60, "input": "", "output": "never", "source": "other", "id": "d"},
    {"instruction": "Say \x1b[31m.", "input": "", "output": "\x1b[2J€\u202e", "source": "other", "id": "a"},
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a base and rows; also the working directory, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORATUNE_CACHE", str(tmp_path / "cache"))
    save_model(tmp_path / "base")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def preview(*options: str) -> int:
    return main(["preview", "--model", "base", "--max-tokens", "160", *options])


def test_ids_and_mask_are_what_training_learns_from(place, capsys):
    assert preview("--rows", "9", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    tokenizer = Tokenizer.load(place / "base")
    assert [row["id"] for row in result["rows"]] == ["a", "b", "c", "d", "a"]
    for row, record in zip(result["rows"], ROWS, strict=True):
        prompt = row["mask"].index(1) if 1 in row["mask"] else len(row["ids"])
        ids = torch.tensor(row["ids"])
        if not row["dropped"]:
            batch = pack([Example(row["ids"][:prompt], row["ids"][prompt:], "", "")])
            assert batch.targets.tolist() == ids[torch.tensor(row["mask"]).bool()].tolist()
            assert len(ids) <= 160
        if not (row["input_tokens_cut"] or row["response_tokens_cut"]):
            input = f"### Input:\n{record['input']}\n\n" if record["input"] else ""
            text = f"### Instruction:\n{record['instruction']}\n\n{input}### Response:\n{record['output']}"
            assert row["ids"] == [*tokenizer.encode(text), tokenizer.eos_id]
    cut = {
        row["id"]: (row["input_tokens_cut"] > 0, row["response_tokens_cut"] > 0, row["dropped"])
        for row in result["rows"][1:4]
    }
    assert cut == {"b": (True, False, False), "c": (False, True, False), "d": (False, True, True)}


def test_the_mask_is_seen_without_colour(place, capsys):
    assert preview("--rows", "9") == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\u202e" not in shown
    learned = [text.replace("¦", "").replace("↵\n", "\n") for text in re.findall("⟦(.*?)⟧", shown, re.DOTALL)]
    assert learned[1] == "A bond.\nYes [red]■" and learned[2] == "Short.■"
    assert learned[3].startswith("again again") and not learned[3].endswith("■")
    assert learned[4] == r"\x1b[2J€\u202e■"
    assert re.search(
        r"word word.* ✂ \d+ tokens of the input left out ✂ .*### Response:↵\n⟦S¦h¦o¦r¦t¦\.¦■⟧",
        shown,
        re.DOTALL,
    )
    assert re.search(r"⟧ ✂ \d+ tokens of the response and the end left out", shown)
    assert re.search(r"✂ dropped: the prompt's \d+ tokens leave no room", shown)
    assert "several rows have the same id, for 1 ids: a" in shown


def test_the_summary_is_of_all_rows_of_the_source(place, capsys):
    assert preview("--rows", "1", "--source", "dolly", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    (row,) = result["rows"]
    assert row["source"] == "dolly"
    assert result["sources"].keys() == {"dolly"} and result["duplicate_ids"] == {}
    dolly = result["sources"]["dolly"]
    assert {name: dolly[name] for name in ("rows", "inputs_cut", "responses_cut", "dropped")} == {
        "rows": 3,
        "inputs_cut": 1,
        "responses_cut": 1,
        "dropped": 0,
    }
    # The bytes of the template, of the instruction and of the response, and the end: this tokenizer makes a
    # token of each byte.
    first = len("### Instruction:\nName it.\n\n### Response:\nA bond.\nYes [red]") + 1
    assert dolly["row_lengths"]["5"] <= dolly["row_lengths"]["50"] <= dolly["row_lengths"]["100"] == 160
    assert dolly["learned"] == len("A bond.\nYes [red]") + 1 + len("Short.") + 1 + 160 - len(
        "### Instruction:\nGo on.\n\n### Response:\n"
    )
    assert dolly["tokens"] - first - 160 <= 160


def test_only_the_rows_that_were_cut(place, capsys):
    assert preview("--cut", "--rows", "2", "--json") == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["b", "c"]
    assert preview("--cut", "--max-tokens", "1024") == 0
    assert "No row was shortened or dropped." in capsys.readouterr().out


def test_nothing_but_the_cache_is_written(place):
    before = sorted(place.rglob("*"))
    assert preview("--data", "data") == 0
    written = [path for path in sorted(place.rglob("*")) if path not in before]
    assert [path.parent.name for path in written if path.is_file()] == ["cache"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--data", "nowhere.jsonl"],
            "--data nowhere.jsonl: there is no such file; make it with `loratune prepare`",
        ),
        (
            ["--source", "doly"],
            "--source doly: data/train.jsonl has no such rows; its sources are dolly, other",
        ),
        (["--template", "none"], "--template none: unknown"),
        (["--rows", "0"], "--rows: "),
    ],
)
def test_bad_input(place, capsys, options, message):
    assert preview(*options) == 2
    assert message in capsys.readouterr().err
