"""`loratune evaluate` as a user meets it, on a model of a few thousand numbers."""

import json
import math
import statistics
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from support.evaluating import ROWS, evaluate, finqa_row, measured, tokenizer_of, write_rows, written
from support.tuned_models import save_tuned


@torch.no_grad()
def test_likelihoods_are_those_of_transformers(place, capsys):
    assert evaluate("--json") == 0
    result = written(place)
    assert json.loads(capsys.readouterr().out) == result
    model = AutoModelForCausalLM.from_pretrained(place / "base")
    tokenizer = tokenizer_of(place)
    nll = content = targets = size = 0
    for row in ROWS:
        input = f"### Input:\n{row['input']}\n\n" if row["input"] else ""
        prompt = tokenizer.encode(f"### Instruction:\n{row['instruction']}\n\n{input}### Response:\n")
        response = [*tokenizer.encode(row["output"]), tokenizer.eos_id]
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(response), reduction="none")
        nll += losses.sum().item()
        content += losses[:-1].sum().item()
        targets += len(response)
        size += len(row["output"])
    base = result["base"]
    assert base["nll"] == pytest.approx(nll / targets, rel=1e-4)
    assert base["content_nll"] == pytest.approx(content / (targets - len(ROWS)), rel=1e-4)
    assert base["perplexity"] == pytest.approx(math.exp(nll / targets), rel=1e-3)
    assert base["bits_per_byte"] == pytest.approx(nll / math.log(2) / size, rel=1e-4)
    assert base["target_tokens"] == result["tuned"]["target_tokens"] == targets


def test_json_contract_without_answers(place):
    assert evaluate("--generate", "0") == 0
    result = written(place)
    for part in (result, *result["by_source"].values()):
        assert (
            part["base"].keys()
            == part["tuned"].keys()
            == {"nll", "content_nll", "perplexity", "bits_per_byte", "target_tokens"}
        )
        assert part["difference"].keys() == {"nll", "content_nll", "bits_per_byte"}
        low, high = part["difference"]["nll"]["interval"]
        mean = part["difference"]["nll"]["mean"]
        assert low <= mean <= high
        assert mean == pytest.approx(part["tuned"]["nll"] - part["base"]["nll"])
        assert part["improved"] + part["tied"] + part["regressed"] == part["rows"]
    assert {source: part["rows"] for source, part in result["by_source"].items()} == {"dolly": 7, "finqa": 3}
    assert result["rows"] == 10 and result["answered_rows"] == 0
    assert (
        sum(part["base"]["target_tokens"] for part in result["by_source"].values())
        == result["base"]["target_tokens"]
    )


def test_an_adapter_without_effect_ties_everywhere(place):
    save_tuned(place, effect=False)
    assert evaluate("--generate", "4") == 0
    result = written(place)
    assert result["base"] == result["tuned"]
    assert result["tied"] == 10 and result["improved"] == result["regressed"] == 0
    assert all(change == {"mean": 0, "interval": [0, 0]} for change in result["difference"].values())


def test_rows_and_answers_are_drawn_evenly_and_always_the_same(place):
    assert evaluate("--rows", "6", "--generate", "4") == 0
    first = written(place)
    assert {source: (part["rows"], part["answered_rows"]) for source, part in first["by_source"].items()} == {
        "dolly": (3, 2),
        "finqa": (3, 2),
    }
    assert first["base"].keys() >= {
        "rouge_l",
        "eos_rate",
        "mean_tokens",
        "rep_4",
        "execution_accuracy",
        "program_accuracy",
    }
    assert evaluate("--rows", "6", "--generate", "4", "--batch-size", "1") == 0
    assert written(place) == first


def test_one_source_of_the_prepared_data(place):
    assert evaluate("--data", "finqa") == 0
    assert written(place)["by_source"].keys() == {"finqa"}


@torch.no_grad()
def test_gold_facts_take_the_place_of_the_retrieved_ones(place, capsys):
    """As if the rows had been prepared with their gold facts; where nobody knows these, the row is left out
    and counted.
    """
    gold = [{"table_1": "net sales | 2010 : 12", "text_4": "sales fell ."}, {"text_0": "net sales were 30 ."}]
    others = [None, {}, {"text_1": 3}, "text_1"]
    write_rows(
        place,
        [*ROWS[:2], *(finqa_row(number, gold_facts=facts) for number, facts in enumerate(gold + others))],
    )
    found = measured(place, "--facts", "gold", "--generate", "9")
    said = capsys.readouterr().out
    assert (
        "4 of 8 rows are left out: their gold facts are unknown" in said
        and "FinQA's rows show gold facts." in said
    )
    assert (found["facts"], found["without_gold_facts"]) == ("gold", 4)
    assert found["by_source"]["finqa"]["tuned"]["facts"] == "gold"
    inputs = ["net sales | 2010 : 12\nsales fell .", "net sales were 30 ."]
    assert [one["input"] for one in found["examples"]] == ["", "", *inputs]
    write_rows(
        place, [*ROWS[:2], *(finqa_row(number) | {"input": text} for number, text in enumerate(inputs))]
    )
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


def test_shortened_rows_are_counted_and_said(place, capsys):
    write_rows(
        place, [*ROWS, {"instruction": "Sum up.", "input": "word " * 300, "output": "yes", "source": "dolly"}]
    )
    assert evaluate() == 0
    assert Counter(written(place)["shortened"]["dolly"]) == Counter(rows=8, inputs_cut=1)
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

    path = place / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    next(iter(weights.values())).fill_(torch.nan)
    save_file(weights, path, metadata={"format": "pt"})
    assert evaluate() == 2
    assert "has non-finite numbers" in capsys.readouterr().err
    assert not (place / "evaluation.json").exists()


def test_rows_whose_meta_is_of_another_form(place):
    strange = {"program": "add(1, 2)", "table": {"a": 1}, "facts": ["x"], "exe_ans": [3]}
    write_rows(
        place,
        [{"instruction": "1 + 2?", "input": "", "output": "add(1, 2)", "source": "mine", "meta": strange}],
    )
    assert evaluate("--generate", "1") == 0
    assert written(place)["base"]["execution_accuracy"] == 0


PARTS = (
    "rows",
    "answered_rows",
    "base",
    "base_bare",
    "tuned",
    "difference",
    "difference_bare",
    "improved",
    "tied",
    "regressed",
)
PARTS += ("by_source", "by_category", "forgetting", "strongest_base", "telling")


def test_adapters_side_by_side_are_what_each_is_alone(place, capsys):
    save_tuned(
        place, name="second", seed=2, targets="attention"
    )  # nothing of the first may be left in the other layers
    alone = [measured(place, "--generate", "4", "--adapter", name) for name in ("adapter", "second")]
    together = measured(place, "--generate", "4", "--adapter", "adapter", "--adapter", "second")
    assert together | {"examples": None} == {
        **alone[0],
        "adapters": [
            {"adapter": one["adapter"], **{name: one[name] for name in PARTS}, "tie_threshold": 0.01}
            for one in alone
        ],
        "spread": together["spread"],
        "examples": None,
    }
    for number, example in enumerate(together["examples"]):
        parts = [{name: one["examples"][number][name] for name in ("tuned", "change")} for one in alone]
        assert example == {**alone[0]["examples"][number], "adapters": parts}
    assert together["adapters"][0]["tuned"] != together["adapters"][1]["tuned"]
    shown = capsys.readouterr().out
    assert "adapter: Of 10 rows" in shown and "second: Of 10 rows" in shown
    losses = [one["tuned"]["nll"] for one in alone]
    bases = {name: alone[0][name]["nll"] for name in ("base_bare", "base")}
    strongest = min(bases, key=bases.__getitem__)
    cells = [f"{loss:.3f}{'*' * (name == strongest)}" for name, loss in bases.items()]
    numbers = " ".join([*cells, *(f"{loss:.3f}" for loss in losses)])
    ending = f"{numbers} {statistics.mean(losses):.3f}±{statistics.stdev(losses):.3f}"
    assert any(" ".join(line.split()).endswith(ending) for line in shown.splitlines())


def test_spread_is_the_sample_standard_deviation(place, capsys):
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
    shown = capsys.readouterr().out
    for of in (found, *found["by_source"].values(), *found["by_category"].values(), found["forgetting"]):
        assert f" {of['nll']['mean']:.3f}±{of['nll']['standard_deviation']:.3f} " in shown


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"base": "another"}, "--adapter second: made for the base model another"),
        (
            {"template": "chatml"},
            "--adapter second: trained with the template 'chatml', but adapter with 'instruction'",
        ),
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
        nll = sum(one[model]["nll"] * count for one, count in zip(examples, tokens, strict=True)) / sum(
            tokens
        )
        assert nll == pytest.approx(result[model]["nll"])
        answered = [one[model] for one in examples if "answer" in one[model]]
        assert len(answered) == 4
        for name in ("rouge_l", "rep_4", "cap_rate"):
            assert statistics.mean(one["scores"][name] for one in answered) == pytest.approx(
                result[model][name]
            )
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
    nll = [
        torch.nn.functional.cross_entropy(model(one).logits[0, :-1], one[0, 1:], reduction="sum").item()
        for one in pieces
    ]
    assert (result["text"], result["windows"]) == ("mine.txt", 3)
    assert result["base"]["target_tokens"] == len(ids) - 3
    assert result["base"]["nll"] == pytest.approx(sum(nll) / (len(ids) - 3), rel=1e-4)
    assert result["difference"]["nll"]["mean"] == pytest.approx(
        result["tuned"]["nll"] - result["base"]["nll"]
    )
    low, high = result["difference"]["nll"]["interval"]
    assert low <= result["difference"]["nll"]["mean"] <= high


def test_without_a_file_the_text_is_named(place):
    forgetting = measured(place, "--generate", "0")["forgetting"]
    assert forgetting["text"] == "prose of FinQA's test pages" and forgetting["windows"] == 2
