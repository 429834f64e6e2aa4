"""`loratune evaluate` as a user meets it, on a model of a few thousand numbers."""

import functools
import itertools
import json
import math
import statistics

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loratune.cli import main
from loratune.commands.loading import load_side_by_side
from loratune.data import prose
from loratune.evaluation import model as measuring
from loratune.evaluation.notebook import Notebook
from loratune.evaluation.statistics import paired_difference
from loratune.generation.decode import Answer
from loratune.models.decoder import Decoder
from loratune.settings import EvaluateSettings
from tuned_models import save_tuned

TABLE = [["", "2010", "2009"], ["net sales", "12", "30"]]
PROGRAM = "subtract(30, 12), divide(#0, 12)"


def finqa_row(number: int, **meta) -> dict:
    meta = {"facts": "retrieved", "program": PROGRAM, "exe_ans": 1.5, "table": TABLE, **meta}
    return {"instruction": f"Question {number}?", "input": "facts", "output": PROGRAM, "source": "finqa", "meta": meta}


COUNTING = [(f"Count to {n}.", " ".join(map(str, range(n)))) for n in range(2, 9)]
KINDS = ["open_qa", "open_qa", "brainstorming", "open_qa", "closed_qa", "brainstorming", ""]
ROWS = [
    {"instruction": asked, "input": "", "output": told, "source": "dolly", "meta": {"category": kind} if kind else {}}
    for (asked, told), kind in zip(COUNTING, KINDS, strict=True)
]
ROWS += [finqa_row(number) for number in range(3)]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a base, an adapter and held-out rows; also the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORATUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(prose, "prose_of_test_pages", lambda: ["net sales rose in 2010 .", "the company has no debt ."])
    save_tuned(tmp_path)
    write_rows(tmp_path, ROWS)
    return tmp_path


def tokenizer_of(place):
    return load_side_by_side(EvaluateSettings(), [place / "adapter"])[0].tokenizer


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


@torch.no_grad()
def test_likelihoods_are_those_of_transformers(place, capsys):
    assert evaluate("--json") == 0
    result = written(place)
    assert json.loads(capsys.readouterr().out) == result
    model = AutoModelForCausalLM.from_pretrained(place / "base")
    tokenizer = tokenizer_of(place)
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
    answers = {"base": ["nonsense"] * 10, "bare base": ["no sense"] * 10, "tuned": ["0 1 2"] * 7 + programs}
    tokenizer = tokenizer_of(place)

    def answer(decoder, prompts, end_ids, decoding, title, constraints, samples, known, on_answer):
        assert len(prompts) == 10 and constraints is None
        ended = "length" if title == "base answers" else "eos"
        return [Answer(tokenizer.encode(text), ended) for text in answers[title.removesuffix(" answers")]]

    monkeypatch.setattr(measuring, "answer", answer)
    result = measured(place, "--generate", "10")
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
    assert dolly["base"]["cap_rate"] == 1 and dolly["tuned"]["cap_rate"] == 0
    assert dolly["base_bare"]["eos_rate"] == 1
    assert dolly["base"]["distinct_2"] == pytest.approx(5 / 49) and dolly["tuned"]["distinct_2"] == pytest.approx(4 / 28)
    assert "distinct_2" not in dolly["difference"]
    programs_of = {one["id"]: one for one in result["examples"] if one["source"] == "finqa"}
    assert [one["tuned"]["result"] for one in programs_of.values()] == [1.5, 1.5, None]
    assert all(one["wanted_result"] == 1.5 for one in programs_of.values())
    assert all("result" not in one["tuned"] for one in result["examples"] if one["source"] == "dolly")
    assert finqa["difference"]["execution_accuracy"]["mean"] == pytest.approx(2 / 3)


def test_accuracy_over_all_ids_counts_what_is_missing_as_wrong(place, monkeypatch, capsys):
    answers = ["0"] * 2 + [PROGRAM, "add(1, 0.5)", "nonsense"]
    tokenizer = tokenizer_of(place)
    programs = [finqa_row(number, split_ids=5) for number in range(2)]
    write_rows(place, [*ROWS[:2], *programs, finqa_row(2, split_ids=5, category="growth")])

    def answer(decoder, prompts, end_ids, decoding, title, constraints, samples, known, on_answer):
        chosen = answers if title.startswith("tuned") else ["0"] * 5
        return [Answer(tokenizer.encode(text), "eos") for text in chosen[: len(prompts)]]

    monkeypatch.setattr(measuring, "answer", answer)
    result = measured(place, "--generate", "5")
    for part in (result, result["by_source"]["finqa"]):
        assert part["split_ids"] == 5
        assert (part["tuned"]["execution_accuracy"], part["tuned"]["execution_accuracy_all"]) == pytest.approx((2 / 3, 2 / 5))
        assert (part["tuned"]["program_accuracy"], part["tuned"]["program_accuracy_all"]) == pytest.approx((1 / 3, 1 / 5))
        assert part["difference"]["execution_accuracy_all"]["mean"] == pytest.approx(2 / 5)
    for part in (result["by_source"]["dolly"], result["by_category"]["growth"]):
        assert "execution_accuracy_all" not in part["tuned"]
    said = " ".join(capsys.readouterr().out.split())
    assert "right results (all), % ↑ 0.0 0.0 40.0 +40.0" in said and "of all 5 questions in FinQA's part" in said
    # A selection says nothing of all ids, nor do rows that do not agree on how many these are.
    for options in (["--generate", "4"], ["--rows", "4", "--generate", "5"]):
        assert "execution_accuracy_all" not in measured(place, *options)["tuned"]
    for sizes in ((5, 6, 5), (None, None, None), ("5", "5", "5"), (2, 2, 2)):
        write_rows(place, [finqa_row(number, split_ids=size) for number, size in enumerate(sizes)])
        assert not {"split_ids", "execution_accuracy_all"} & measured(place, "--generate", "9")["tuned"].keys()
    # What has no room for a target is not answered; what has no known gold facts is not either.
    long = finqa_row(9, split_ids=5) | {"instruction": "why " * 300}
    write_rows(place, [long, *(finqa_row(n, split_ids=5, gold_facts={"text_1": "a"} if n else None) for n in range(3))])
    answers = [PROGRAM] * 4
    assert measured(place, "--generate", "9")["tuned"]["execution_accuracy_all"] == pytest.approx(3 / 5)
    assert measured(place, "--generate", "9", "--facts", "gold")["tuned"]["execution_accuracy_all"] == pytest.approx(2 / 5)


def test_an_evaluation_that_was_stopped_goes_on(place, monkeypatch, capsys):
    """Wherever it was, with all that was known, and its result is that of one which nobody stopped."""
    options = ("--generate", "10", "--temperature", "1", "--samples", "2", "--constrain")
    whole, stopped, note = measured(place, *options), 0, Notebook.note
    monkeypatch.setenv("LORATUNE_CACHE", str(place / "another cache"))

    def note_and_stop(self, key, value):
        note(self, key, value)
        if len(self.known) % 7 == 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Notebook, "note", note_and_stop)
        while evaluate(*options) == 130:
            stopped += 1
    assert written(place) == whole and stopped >= 9
    capsys.readouterr()
    monkeypatch.setattr(Decoder, "forward", None)  # nothing is left to compute
    assert measured(place, *options) == whole
    assert "tuned answers: 20 of 20 known from an earlier evaluation" in capsys.readouterr().out


def test_what_is_known_of_the_base_serves_another_adapter(place, monkeypatch):
    measured(place, "--generate", "4")
    (place / "another").mkdir()
    (place / "another" / "adapter_config.json").write_bytes((place / "adapter" / "adapter_config.json").read_bytes())
    matrices = load_file(place / "adapter" / "adapter_model.safetensors")
    save_file({name: matrix * 1.5 for name, matrix in matrices.items()}, place / "another" / "adapter_model.safetensors")
    notebooks = {path: path.read_bytes() for path in (place / "cache").glob("measured-*")}
    result = measured(place, "--generate", "4", "--adapter", "another", "--model", "base")
    assert len(notebooks) == 2 and all(path.read_bytes() == content for path, content in notebooks.items())
    assert len(list((place / "cache").glob("measured-*"))) == 3
    monkeypatch.setenv("LORATUNE_CACHE", str(place / "another cache"))
    assert measured(place, "--generate", "4", "--adapter", "another", "--model", "base") == result


@pytest.mark.parametrize(
    "options",
    [
        ["--max-new-tokens", "4"],
        ["--repetition-penalty", "1.5"],
        ["--temperature", "0.5"],
        ["--temperature", "1", "--seed", "1"],
        ["--temperature", "1", "--top-k", "5"],
        ["--temperature", "1", "--top-p", "0.5"],
        ["--constrain"],
        ["--template", "plain"],
    ],
    ids=" ".join,
)
def test_what_is_known_is_not_taken_for_other_settings(place, monkeypatch, options):
    measured(place, "--generate", "10")
    measured(place, "--generate", "10", "--temperature", "1")
    result = measured(place, "--generate", "10", *options)
    monkeypatch.setenv("LORATUNE_CACHE", str(place / "another cache"))
    assert measured(place, "--generate", "10", *options) == result


SAMPLED = ("--temperature", "1", "--generate", "10")


def test_samples_are_what_runs_with_their_seeds_are(place, monkeypatch):
    """Scores, their spread over the seeds, and intervals over rows whose samples were averaged first."""
    singles = [measured(place, *SAMPLED, "--seed", str(seed)) for seed in (5, 6, 7)]
    passes = []
    likelihood = measuring.response_nll
    monkeypatch.setattr(measuring, "response_nll", lambda *given: passes.append(len(given[1])) or likelihood(*given))
    monkeypatch.setenv("LORATUNE_CACHE", str(place / "another cache"))
    together = measured(place, *SAMPLED, "--seed", "5", "--samples", "3")
    assert passes.count(len(ROWS)) == 3  # of base, bare base and tuned: the loss does not depend on the sampling
    assert together["decoding"] == singles[0]["decoding"] | {"samples": 3}
    assert not any("over_samples" in one for one in singles)
    for path in ((), ("by_source", "dolly"), ("by_source", "finqa"), ("by_category", "open_qa")):
        part, *alone = [functools.reduce(dict.__getitem__, path, one) for one in (together, *singles)]
        for model, name in itertools.product(("base", "base_bare", "tuned"), ("rouge_l", "mean_tokens", "distinct_2")):
            values = [one[model][name] for one in alone]
            found = part["over_samples"][model][name]
            assert part[model][name] == found["mean"] == pytest.approx(statistics.mean(values))
            assert found["standard_deviation"] == pytest.approx(statistics.stdev(values))
        assert part["tuned"]["nll"] == alone[0]["tuned"]["nll"] and "nll" not in part["over_samples"]["tuned"]
    assert together["over_samples"]["tuned"]["mean_tokens"]["standard_deviation"] > 0
    rows = {
        model: [statistics.mean(one[model]["scores"]["mean_tokens"] for one in row) for row in examples_of(singles)]
        for model in ("base", "tuned")
    }
    change = together["difference"]["mean_tokens"]
    assert change["interval"] == pytest.approx(paired_difference(rows["base"], rows["tuned"], seed=5)["interval"])
    for example, alone in zip(together["examples"], examples_of(singles), strict=True):
        for model in ("base", "base_bare", "tuned"):
            assert [{"nll": example[model]["nll"], **sample} for sample in example[model]["samples"]] == [
                one[model] for one in alone
            ]
            assert example[model] == alone[0][model] | {"samples": example[model]["samples"]}


def examples_of(results: list[dict]) -> list[tuple[dict, ...]]:
    return list(zip(*(one["examples"] for one in results), strict=True))


def test_samples_are_of_the_same_rows(place, capsys):
    chosen = []
    for samples in ("1", "2"):
        result = measured(place, "--temperature", "1", "--generate", "4", "--samples", samples, "--seed", "3")
        chosen.append([one["id"] for one in result["examples"] if "answer" in one["tuned"]])
        assert result["answered_rows"] == 4 and result["difference"].keys() == result["difference_bare"].keys()
    assert chosen[0] == chosen[1] and len(chosen[0]) == 4
    assert [len(one["tuned"].get("samples", [])) for one in result["examples"]].count(2) == 4
    unanswered = [part for part in result["by_category"].values() if not part["answered_rows"]]
    assert unanswered and not any("over_samples" in part for part in unanswered)
    said = " ".join(capsys.readouterr().out.split())
    spread = result["over_samples"]["tuned"]["mean_tokens"]
    assert f"{spread['mean']:.1f}±{spread['standard_deviation']:.1f}" in said
    assert "±: standard deviation of the score over 2 samples of every answer" in said


@pytest.mark.parametrize("temperature", [[], ["--temperature", "0"], ["--temperature", "0.0"]])
def test_samples_without_chance_are_refused(place, capsys, temperature):
    assert evaluate("--samples", "3", *temperature) == 2
    assert "--samples: at --temperature 0 all answers would be the same; raise it" in capsys.readouterr().err
    assert evaluate("--samples", "3", "--temperature", "warm") == 2
    assert capsys.readouterr().err.count("error") == 1


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


@torch.no_grad()
def test_gold_facts_take_the_place_of_the_retrieved_ones(place, capsys):
    """As if the rows had been prepared with their gold facts; where nobody knows these, the row is left out and counted."""
    gold = [{"table_1": "net sales | 2010 : 12", "text_4": "sales fell ."}, {"text_0": "net sales were 30 ."}]
    others = [None, {}, {"text_1": 3}, "text_1"]
    write_rows(place, [*ROWS[:2], *(finqa_row(number, gold_facts=facts) for number, facts in enumerate(gold + others))])
    found = measured(place, "--facts", "gold", "--generate", "9")
    said = capsys.readouterr().out
    assert "4 of 8 rows are left out: their gold facts are unknown" in said and "FinQA's rows show gold facts." in said
    assert (found["facts"], found["without_gold_facts"]) == ("gold", 4)
    assert found["by_source"]["finqa"]["tuned"]["facts"] == "gold"
    inputs = ["net sales | 2010 : 12\nsales fell .", "net sales were 30 ."]
    assert [one["input"] for one in found["examples"]] == ["", "", *inputs]
    write_rows(place, [*ROWS[:2], *(finqa_row(number) | {"input": text} for number, text in enumerate(inputs))])
    prepared = measured(place, "--generate", "9")
    assert (prepared["facts"], prepared["without_gold_facts"]) == ("retrieved", 0)
    assert prepared["by_source"]["finqa"]["tuned"]["facts"] == "retrieved"
    for name in ("nll", "rep_4"):
        assert prepared["by_source"]["finqa"]["tuned"][name] == found["by_source"]["finqa"]["tuned"][name]
    assert prepared["by_source"]["dolly"] == found["by_source"]["dolly"]


def test_gold_facts_that_no_row_has_are_refused(place, capsys):
    assert evaluate("--facts", "gold") == 2
    assert "--facts gold: no row of --data data/test.jsonl has known gold facts" in capsys.readouterr().err
    assert evaluate("--facts", "matched") == 2
    assert not (place / "evaluation.json").exists()


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
        (["--forgetting", "nowhere.txt"], "nowhere.txt: there is no such file"),
        (["--forgetting", "empty.jsonl"], "--forgetting empty.jsonl: the file is blank"),
        (["--forgetting", "letter.txt"], "--forgetting letter.txt: the text is a single token"),
        (["--forgetting", "latin.txt"], "latin.txt, line 2: not UTF-8 text"),
        (["--adapter", "adapter", "nowhere"], "--adapter nowhere: there is no such folder"),
    ],
)
def test_bad_input(place, capsys, options, message):
    (place / "broken.jsonl").write_text(json.dumps(ROWS[0]) + '\n{"instruction": "x"\n')
    (place / "other.jsonl").write_text('{"instruction": "no output"}\n')
    (place / "empty.jsonl").write_text("")
    (place / "letter.txt").write_text("a")
    (place / "latin.txt").write_bytes(b"one\ncaf\xe9\n")
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


PARTS = ("rows", "answered_rows", "base", "base_bare", "tuned", "difference", "difference_bare", "improved", "tied", "regressed")
PARTS += ("by_source", "by_category", "forgetting", "telling")


def test_adapters_side_by_side_are_what_each_is_alone(place, capsys):
    save_tuned(place, name="second", seed=2, targets="attention")  # nothing of the first may be left in the other layers
    alone = [measured(place, "--generate", "4", "--adapter", name) for name in ("adapter", "second")]
    together = measured(place, "--generate", "4", "--adapter", "adapter", "--adapter", "second")
    assert together | {"examples": None} == {
        **alone[0],
        "adapters": [{"adapter": one["adapter"], **{name: one[name] for name in PARTS}, "tie_threshold": 0.01} for one in alone],
        "spread": together["spread"],
        "examples": None,
    }
    for number, example in enumerate(together["examples"]):
        parts = [{name: one["examples"][number][name] for name in ("tuned", "change")} for one in alone]
        assert example == {**alone[0]["examples"][number], "adapters": parts}
    assert together["adapters"][0]["tuned"] != together["adapters"][1]["tuned"]
    shown = capsys.readouterr().out
    assert "adapter: Of 10 rows" in shown and "second: Of 10 rows" in shown
    both = " ".join(f"{one['tuned']['nll']:.3f} {one['difference']['nll']['mean']:+.3f}" for one in alone)
    numbers = f"{alone[0]['base_bare']['nll']:.3f} {alone[0]['base']['nll']:.3f} {both}"
    assert any(" ".join(line.split()).endswith(numbers) for line in shown.splitlines())


def test_spread_is_the_sample_standard_deviation(place):
    save_tuned(place, name="second", seed=2)
    save_tuned(place, name="third", seed=3)
    result = measured(place, "--generate", "4", "--adapter", "adapter", "second", "third")
    found, adapters = result["spread"], result["adapters"]
    for name in ("nll", "perplexity", "rouge_l", "distinct_2", "execution_accuracy"):
        values = [one["tuned"][name] for one in adapters]
        assert found[name]["mean"] == pytest.approx(statistics.mean(values))
        assert found[name]["standard_deviation"] == pytest.approx(statistics.stdev(values))
    dolly = [one["by_source"]["dolly"]["tuned"]["nll"] for one in adapters]
    assert found["by_source"]["dolly"]["nll"]["standard_deviation"] == pytest.approx(statistics.stdev(dolly))
    on_prose = [one["forgetting"]["tuned"]["nll"] for one in adapters]
    assert found["forgetting"]["nll"]["standard_deviation"] == pytest.approx(statistics.stdev(on_prose))
    assert not {"target_tokens", "facts"} & found.keys()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"base": "another"}, "--adapter second: made for the base model another"),
        ({"template": "chatml"}, "--adapter second: trained with the template 'chatml', but adapter with 'instruction'"),
    ],
)
def test_adapters_that_are_not_comparable_are_refused(place, capsys, other, message):
    save_tuned(place, name="second", **other)
    assert evaluate("--adapter", "adapter", "second") == 2
    assert message in capsys.readouterr().err
    assert not (place / "evaluation.json").exists()


def test_the_template_of_the_adapter_is_used_unless_another_is_asked_for(place, capsys):
    save_tuned(place, template="chatml")
    own = measured(place, "--generate", "0")
    assert "answer worse" not in capsys.readouterr().out
    assert own == measured(place, "--generate", "0", "--template", "chatml")
    assert own["tuned"] != measured(place, "--generate", "0", "--template", "instruction")["tuned"]
    told = " ".join(capsys.readouterr().out.split())
    assert "trained with the template 'chatml'; with 'instruction' it will answer worse" in told


def test_the_bare_base_is_the_base_with_the_plain_template(place):
    with_own = measured(place, "--generate", "4")
    with_plain = measured(place, "--generate", "4", "--template", "plain")
    assert with_plain["base"] == with_plain["base_bare"] == with_own["base_bare"] != with_own["base"]
    for group in ("by_source", "by_category"):
        for name, part in with_own[group].items():
            assert part["base_bare"] == with_plain[group][name]["base"]
    change = with_own["difference_bare"]["nll"]["mean"]
    assert change == pytest.approx(with_own["tuned"]["nll"] - with_own["base_bare"]["nll"])


def test_without_the_bare_base(place):
    with_bare, without = measured(place), measured(place, "--no-bare")
    assert without["base"] == with_bare["base"] and without["difference"] == with_bare["difference"]
    assert not {"base_bare", "difference_bare"} & (without.keys() | without["by_source"]["dolly"].keys())


def test_categories_make_up_their_source(place):
    write_rows(place, [row for row in ROWS if row["meta"].get("category") or row["source"] == "finqa"])
    result = measured(place)
    categories, dolly = result["by_category"], result["by_source"]["dolly"]
    assert list(categories) == ["brainstorming", "closed_qa", "open_qa"]
    for count in ("rows", "answered_rows", "improved", "tied", "regressed"):
        assert sum(part[count] for part in categories.values()) == dolly[count]
    for model in ("base", "base_bare", "tuned"):
        tokens = [part[model]["target_tokens"] for part in categories.values()]
        nll = sum(part[model]["nll"] * count for part, count in zip(categories.values(), tokens, strict=True))
        assert sum(tokens) == dolly[model]["target_tokens"]
        assert nll / sum(tokens) == pytest.approx(dolly[model]["nll"])


def test_examples_make_up_the_totals(place):
    result = measured(place, "--generate", "4")
    examples = result["examples"]
    assert [one["instruction"] for one in examples] == [row["instruction"] for row in ROWS]
    tokens = [one["target_tokens"] for one in examples]
    for model in ("base", "base_bare", "tuned"):
        nll = sum(one[model]["nll"] * count for one, count in zip(examples, tokens, strict=True)) / sum(tokens)
        assert nll == pytest.approx(result[model]["nll"])
        answered = [one[model] for one in examples if "answer" in one[model]]
        assert len(answered) == 4
        for name in ("rouge_l", "rep_4", "cap_rate"):
            assert statistics.mean(one["scores"][name] for one in answered) == pytest.approx(result[model][name])
    assert all(one["change"] == pytest.approx(one["tuned"]["nll"] - one["base"]["nll"]) for one in examples)
    assert sum(one["change"] < -0.01 for one in examples) == result["improved"]


def test_the_most_telling_rows(place):
    result = measured(place, "--generate", "0")
    changes = {one["id"]: one["change"] for one in result["examples"]}
    told = result["telling"]
    rising = sorted(changes, key=changes.__getitem__)
    assert told["largest_gain"] == [id for id in rising if changes[id] < -0.01][:5]
    assert told["largest_loss"] == [id for id in rising[::-1] if changes[id] > 0.01][:5]
    everything = [id for ids in told.values() for id in ids]
    assert len(everything) == len(set(everything)) == 5 + min(5, len(rising) - 5)
    left = [abs(changes[id]) for id in told["nearest_tie"]]
    assert left == sorted(left)


@torch.no_grad()
def test_forgetting_is_the_likelihood_of_plain_text(place):
    (place / "mine.txt").write_text("Plain text, and no more. " * 50)
    result = measured(place, "--forgetting", "mine.txt", "--generate", "0")["forgetting"]
    model, ids = (
        AutoModelForCausalLM.from_pretrained(place / "base"),
        tokenizer_of(place).encode("Plain text, and no more. " * 50),
    )
    pieces = [torch.tensor([ids[start : start + 512]]) for start in range(0, len(ids), 512)]
    nll = [torch.nn.functional.cross_entropy(model(one).logits[0, :-1], one[0, 1:], reduction="sum").item() for one in pieces]
    assert (result["text"], result["windows"]) == ("mine.txt", 3)
    assert result["base"]["target_tokens"] == len(ids) - 3
    assert result["base"]["nll"] == pytest.approx(sum(nll) / (len(ids) - 3), rel=1e-4)
    assert result["difference"]["nll"]["mean"] == pytest.approx(result["tuned"]["nll"] - result["base"]["nll"])
    low, high = result["difference"]["nll"]["interval"]
    assert low <= result["difference"]["nll"]["mean"] <= high


def test_without_a_file_the_text_is_named(place):
    forgetting = measured(place, "--generate", "0")["forgetting"]
    assert forgetting["text"] == "prose of FinQA's test pages" and forgetting["windows"] == 2
