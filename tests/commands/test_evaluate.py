"""`loratune evaluate` as a user meets it, on a model of a few thousand numbers."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from loratune.cli import main
from loratune.commands import evaluate as command
from loratune.generation.decode import Answer
from tuned_models import save_tuned

TABLE = [["", "2010", "2009"], ["net sales", "12", "30"]]
PROGRAM = "subtract(30, 12), divide(#0, 12)"


def finqa_row(number: int, **meta) -> dict:
    meta = {"facts": "retrieved", "program": PROGRAM, "exe_ans": 1.5, "table": TABLE, **meta}
    return {"instruction": f"Question {number}?", "input": "facts", "output": PROGRAM, "source": "finqa", "meta": meta}


COUNTING = [(f"Count to {n}.", " ".join(map(str, range(n)))) for n in range(2, 9)]
ROWS = [{"instruction": asked, "input": "", "output": told, "source": "dolly"} for asked, told in COUNTING]
ROWS += [finqa_row(number) for number in range(3)]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a base, an adapter and held-out rows; also the working directory."""
    monkeypatch.chdir(tmp_path)
    save_tuned(tmp_path)
    write_rows(tmp_path, ROWS)
    return tmp_path


def write_rows(place, rows) -> None:
    (place / "data").mkdir(exist_ok=True)
    (place / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def evaluate(*options: str) -> int:
    return main(["evaluate", "--adapter", "adapter", "--max-new-tokens", "10", "--threads", "1", *options])


def written(place) -> dict:
    return json.loads((place / "evaluation.json").read_text())


@torch.no_grad()
def test_likelihoods_are_those_of_transformers(place, capsys):
    assert evaluate("--json") == 0
    result = written(place)
    assert json.loads(capsys.readouterr().out) == result
    model = AutoModelForCausalLM.from_pretrained(place / "base")
    tokenizer = command.load_tuned(command.EvaluateSettings(adapter=place / "adapter")).tokenizer
    nll = targets = size = 0
    for row in ROWS:
        input = f"### Input:\n{row['input']}\n\n" if row["input"] else ""
        prompt = tokenizer.encode(f"### Instruction:\n{row['instruction']}\n\n{input}### Response:\n")
        response = [*tokenizer.encode(row["output"]), tokenizer.eos_id]
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        nll += torch.nn.functional.cross_entropy(logits, torch.tensor(response), reduction="sum").item()
        targets += len(response)
        size += len(row["output"])
    base = result["base"]
    assert base["nll"] == pytest.approx(nll / targets, rel=1e-4)
    assert base["perplexity"] == pytest.approx(math.exp(nll / targets), rel=1e-3)
    assert base["bits_per_byte"] == pytest.approx(nll / math.log(2) / size, rel=1e-4)
    assert base["target_tokens"] == result["tuned"]["target_tokens"] == targets


def test_json_contract_without_answers(place):
    assert evaluate("--generate", "0") == 0
    result = written(place)
    for part in (result, *result["by_source"].values()):
        assert part["base"].keys() == part["tuned"].keys() == {"nll", "perplexity", "bits_per_byte", "target_tokens"}
        assert part["difference"].keys() == {"nll", "bits_per_byte"}
        low, high = part["difference"]["nll"]["interval"]
        mean = part["difference"]["nll"]["mean"]
        assert low <= mean <= high
        assert mean == pytest.approx(part["tuned"]["nll"] - part["base"]["nll"])
        assert part["improved"] + part["tied"] + part["regressed"] == part["rows"]
    assert {source: part["rows"] for source, part in result["by_source"].items()} == {"dolly": 7, "finqa": 3}
    assert result["rows"] == 10 and result["answered_rows"] == 0
    assert sum(part["base"]["target_tokens"] for part in result["by_source"].values()) == result["base"]["target_tokens"]


def test_an_adapter_without_effect_ties_everywhere(place):
    save_tuned(place, effect=False)
    assert evaluate("--generate", "4") == 0
    result = written(place)
    assert result["base"] == result["tuned"]
    assert result["tied"] == 10 and result["improved"] == result["regressed"] == 0
    assert all(change == {"mean": 0, "interval": [0, 0]} for change in result["difference"].values())


def test_answers_are_scored(place, monkeypatch):
    """The base always errs; the tuned model gives the right result by other means, and once the right program itself."""
    programs = ["divide(subtract(30, 12), 12)", "add(1, 0.5)", "divide(30, 0)"]
    answers = {"base": ["nonsense"] * 10, "tuned": ["0 1 2"] * 7 + programs}

    def both(decoder, prompts, eos_id, decoding, constraints):
        tokenizer = command.load_tuned(decoding).tokenizer
        assert len(prompts) == 10 and constraints is None
        return tuple([Answer(tokenizer.encode(text), "eos") for text in answers[model]] for model in ("base", "tuned"))

    monkeypatch.setattr(command, "answer_both", both)
    assert evaluate("--generate", "10") == 0
    result = written(place)
    finqa, dolly = result["by_source"]["finqa"], result["by_source"]["dolly"]
    assert finqa["tuned"]["execution_accuracy"] == pytest.approx(2 / 3)
    assert finqa["tuned"]["program_accuracy"] == pytest.approx(1 / 3)
    assert finqa["tuned"]["valid_programs"] == pytest.approx(2 / 3)
    assert finqa["tuned"]["facts"] == "retrieved"
    assert finqa["base"]["execution_accuracy"] == finqa["base"]["valid_programs"] == 0
    assert "execution_accuracy" not in dolly["tuned"] and "facts" not in dolly["tuned"]
    assert result["tuned"]["execution_accuracy"] == pytest.approx(2 / 3)  # of the rows that have programs, not of all
    assert dolly["tuned"]["rouge_l"] > dolly["base"]["rouge_l"] == 0
    assert dolly["tuned"]["eos_rate"] == 1 and dolly["base"]["mean_tokens"] == len("nonsense")
    assert finqa["difference"]["execution_accuracy"]["mean"] == pytest.approx(2 / 3)


def test_constrained_answers_are_programs_where_programs_are_wanted(place):
    assert evaluate("--generate", "10", "--max-new-tokens", "300") == 0
    free = written(place)
    assert evaluate("--generate", "10", "--max-new-tokens", "300", "--constrain") == 0
    held = written(place)
    assert (free["decoding"]["constrain"], held["decoding"]["constrain"]) == (False, True)
    assert held["by_source"]["dolly"] == free["by_source"]["dolly"]
    for model in ("base", "tuned"):
        assert free["by_source"]["finqa"][model]["valid_programs"] == 0
        assert held["by_source"]["finqa"][model]["eos_rate"] == 1


def test_rows_and_answers_are_drawn_evenly_and_always_the_same(place):
    assert evaluate("--rows", "6", "--generate", "4") == 0
    first = written(place)
    assert {source: (part["rows"], part["answered_rows"]) for source, part in first["by_source"].items()} == {
        "dolly": (3, 2),
        "finqa": (3, 2),
    }
    assert first["base"].keys() >= {"rouge_l", "eos_rate", "mean_tokens", "rep_4", "execution_accuracy", "program_accuracy"}
    assert evaluate("--rows", "6", "--generate", "4", "--batch-size", "1") == 0
    assert written(place) == first


def test_one_source_of_the_prepared_data(place):
    assert evaluate("--data", "finqa") == 0
    assert written(place)["by_source"].keys() == {"finqa"}


def test_rows_with_an_answer_as_target_are_not_scored_as_programs(place):
    write_rows(place, [finqa_row(1) | {"output": "150%"}])
    assert evaluate("--generate", "1") == 0
    assert "execution_accuracy" not in written(place)["base"]


def test_shortened_rows_are_counted_and_said(place, capsys):
    write_rows(place, [*ROWS, {"instruction": "Sum up.", "input": "word " * 300, "output": "yes", "source": "dolly"}])
    assert evaluate() == 0
    assert written(place)["shortened"]["dolly"] == {"rows": 8, "inputs_cut": 1, "responses_cut": 0, "dropped": 0}
    assert "dolly: 1 of 8 rows were shortened or dropped to fit in 512 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere.jsonl"], "--data nowhere.jsonl: there is no file nowhere.jsonl"),
        (["--data", "broken.jsonl"], "broken.jsonl, line 2"),
        (["--data", "other.jsonl"], "other.jsonl, line 1"),
        (["--data", "empty.jsonl"], "empty"),
        (["--adapter", "nowhere"], "there is no such folder"),
        (["--out", "adapter"], "--out adapter: this is a folder"),
        (["--generat", "3"], "did you mean --generate?"),
        (["--rows", "-1"], "--rows: input should be greater than or equal to 0"),
    ],
)
def test_bad_input(place, capsys, options, message):
    (place / "broken.jsonl").write_text(json.dumps(ROWS[0]) + '\n{"instruction": "x"\n')
    (place / "other.jsonl").write_text('{"instruction": "no output"}\n')
    (place / "empty.jsonl").write_text("")
    assert evaluate(*options) == 2
    assert message in capsys.readouterr().err
    assert not (place / "evaluation.json").exists()


def test_a_source_that_is_not_there_is_refused(place, capsys):
    write_rows(place, ROWS[:3])
    assert evaluate("--data", "finqa") == 2
    assert "data/test.jsonl has no rows of this source" in capsys.readouterr().err


def test_an_adapter_with_broken_numbers_is_refused(place, capsys):
    from safetensors.torch import load_file, save_file

    path = place / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    next(iter(weights.values())).fill_(torch.nan)
    save_file(weights, path, metadata={"format": "pt"})
    assert evaluate() == 2
    assert "has numbers that are not finite" in capsys.readouterr().err
    assert not (place / "evaluation.json").exists()


def test_rows_whose_meta_is_of_another_form(place):
    strange = {"program": "add(1, 2)", "table": {"a": 1}, "facts": ["x"], "exe_ans": [3]}
    write_rows(place, [{"instruction": "1 + 2?", "input": "", "output": "add(1, 2)", "source": "mine", "meta": strange}])
    assert evaluate("--generate", "1") == 0
    assert written(place)["base"]["execution_accuracy"] == 0
