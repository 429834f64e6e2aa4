"""What `loratune evaluate` makes of the models' answers, of one and of several samples."""

import functools
import itertools
import statistics

import pytest

from loratune.evaluation import runner as measuring
from loratune.evaluation.statistics import paired_difference
from loratune.generation.request import Answer
from loratune.report.html import render_comparison_page
from loratune.report.schema import read_evaluation
from loratune.report.summary import Comparison
from support.evaluating import PROGRAM, ROWS, evaluate, finqa_row, measured, tokenizer_of, write_rows, written


def test_answers_are_scored(place, monkeypatch):
    """The base always errs; the tuned model gives the right result by other means, and once the right program
    itself.
    """
    programs = ["divide(subtract(30, 12), 12)", "add(1, 0.5)", "divide(30, 0)"]
    answers = {
        "base": ["nonsense"] * 10,
        "base without template": ["no sense"] * 10,
        "tuned": ["0 1 2"] * 7 + programs,
    }
    tokenizer = tokenizer_of(place)

    def answer(title, decoder, requests, **_):
        assert len(requests) == 10 and all(request.constraint is None for request in requests)
        ended = "length" if title == "base answers" else "eos"
        return [Answer(tokenizer.encode(text), ended) for text in answers[title.removesuffix(" answers")]]

    monkeypatch.setattr(measuring, "generate_with_progress", answer)
    result = measured(place, "--generate", "10")
    finqa, dolly = result["by_source"]["finqa"], result["by_source"]["dolly"]
    assert finqa["tuned"]["execution_accuracy"] == pytest.approx(2 / 3)
    assert finqa["tuned"]["program_accuracy"] == pytest.approx(1 / 3)
    assert finqa["tuned"]["valid_programs"] == pytest.approx(2 / 3)
    assert finqa["tuned"]["facts"] == "retrieved"
    assert finqa["base"]["execution_accuracy"] == finqa["base"]["valid_programs"] == 0
    assert "execution_accuracy" not in dolly["tuned"] and "facts" not in dolly["tuned"]
    assert result["tuned"]["execution_accuracy"] == pytest.approx(
        2 / 3
    )  # of the rows that have programs, not of all
    assert dolly["tuned"]["rouge_l"] > dolly["base"]["rouge_l"] == 0
    assert dolly["tuned"]["eos_rate"] == 1 and dolly["base"]["mean_tokens"] == len("nonsense")
    assert dolly["base"]["cap_rate"] == 1 and dolly["tuned"]["cap_rate"] == 0
    assert dolly["base_bare"]["eos_rate"] == 1
    assert dolly["base"]["distinct_2"] == pytest.approx(5 / 49) and dolly["tuned"][
        "distinct_2"
    ] == pytest.approx(4 / 28)
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

    def answer(title, decoder, requests, **_):
        chosen = answers if title.startswith("tuned") else ["0"] * 5
        return [Answer(tokenizer.encode(text), "eos") for text in chosen[: len(requests)]]

    monkeypatch.setattr(measuring, "generate_with_progress", answer)
    result = measured(place, "--generate", "5")
    for part in (result, result["by_source"]["finqa"]):
        assert part["split_ids"] == 5
        assert (
            part["tuned"]["execution_accuracy"],
            part["tuned"]["execution_accuracy_all"],
        ) == pytest.approx((2 / 3, 2 / 5))
        assert (part["tuned"]["program_accuracy"], part["tuned"]["program_accuracy_all"]) == pytest.approx(
            (1 / 3, 1 / 5)
        )
        assert part["difference"]["execution_accuracy_all"]["mean"] == pytest.approx(2 / 5)
    for part in (result["by_source"]["dolly"], result["by_category"]["growth"]):
        assert "execution_accuracy_all" not in part["tuned"]
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "right results (all), % ↑ 0.0 0.0* 40.0 +40.0" in said
        and "of all 5 questions in FinQA's part" in said
    )
    # A selection says nothing of all ids, nor do rows that do not agree on how many these are.
    for options in (["--generate", "4"], ["--rows", "4", "--generate", "5"]):
        assert "execution_accuracy_all" not in measured(place, *options)["tuned"]
    for sizes in ((5, 6, 5), (None, None, None), ("5", "5", "5"), (2, 2, 2)):
        write_rows(place, [finqa_row(number, split_ids=size) for number, size in enumerate(sizes)])
        assert (
            not {"split_ids", "execution_accuracy_all"} & measured(place, "--generate", "9")["tuned"].keys()
        )
    # What has no room for a target is not answered; what has no known gold facts is not either.
    long = finqa_row(9, split_ids=5) | {"instruction": "why " * 300}
    write_rows(
        place,
        [long, *(finqa_row(n, split_ids=5, gold_facts={"text_1": "a"} if n else None) for n in range(3))],
    )
    answers = [PROGRAM] * 4
    assert measured(place, "--generate", "9")["tuned"]["execution_accuracy_all"] == pytest.approx(3 / 5)
    assert measured(place, "--generate", "9", "--facts", "gold")["tuned"][
        "execution_accuracy_all"
    ] == pytest.approx(2 / 5)


SAMPLED = ("--temperature", "1", "--generate", "10")


def test_samples_are_what_runs_with_their_seeds_are(place, monkeypatch):
    """Scores, their spread over the seeds, and intervals over rows whose samples were averaged first."""
    singles = [measured(place, *SAMPLED, "--seed", str(seed)) for seed in (5, 6, 7)]
    passes = []
    likelihood = measuring.response_losses
    monkeypatch.setattr(
        measuring, "response_losses", lambda *given: passes.append(len(given[1])) or likelihood(*given)
    )
    monkeypatch.setenv("LORATUNE_CACHE", str(place / "another cache"))
    together = measured(place, *SAMPLED, "--seed", "5", "--samples", "3")
    assert (
        passes.count(len(ROWS)) == 3
    )  # of base, base without template and tuned: the loss does not depend on the sampling
    assert together["decoding"] == singles[0]["decoding"] | {"samples": 3}
    assert not any("over_samples" in one for one in singles)
    for path in ((), ("by_source", "dolly"), ("by_source", "finqa"), ("by_category", "open_qa")):
        part, *alone = [functools.reduce(dict.__getitem__, path, one) for one in (together, *singles)]
        for model, name in itertools.product(
            ("base", "base_bare", "tuned"), ("rouge_l", "mean_tokens", "distinct_2")
        ):
            values = [one[model][name] for one in alone]
            found = part["over_samples"][model][name]
            assert part[model][name] == found["mean"] == pytest.approx(statistics.mean(values))
            assert found["standard_deviation"] == pytest.approx(statistics.stdev(values))
        assert part["tuned"]["nll"] == alone[0]["tuned"]["nll"] and "nll" not in part["over_samples"]["tuned"]
    assert together["over_samples"]["tuned"]["mean_tokens"]["standard_deviation"] > 0
    rows = {
        model: [
            statistics.mean(one[model]["scores"]["mean_tokens"] for one in row)
            for row in examples_of(singles)
        ]
        for model in ("base", "tuned")
    }
    change = together["difference"]["mean_tokens"]
    assert change["interval"] == pytest.approx(
        paired_difference(rows["base"], rows["tuned"], seed=5)["interval"]
    )
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
        assert (
            result["answered_rows"] == 4 and result["difference"].keys() == result["difference_bare"].keys()
        )
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


def test_rows_with_an_answer_as_target_are_not_scored_as_programs(place):
    write_rows(place, [finqa_row(1) | {"output": "150%"}])
    assert evaluate("--generate", "1") == 0
    assert "execution_accuracy" not in written(place)["base"]


def without_program(number: int, **meta) -> dict:
    """A question of FinQA of which only the result is known, as `prepare` writes it."""
    return finqa_row(number, program=None, no_target=True, **meta) | {"output": "1.5"}


def test_a_question_without_a_gold_program_is_answered_and_scored_and_in_no_loss(place, monkeypatch, capsys):
    tokenizer = tokenizer_of(place)

    def answer(title, decoder, requests, **_):
        chosen = ["0"] * 3 + [PROGRAM, "$1", "add(1, 0.5)", PROGRAM]
        return [
            Answer(tokenizer.encode(text if title.startswith("tuned") else "0"), "eos")
            for text in chosen[: len(requests)]
        ]

    monkeypatch.setattr(measuring, "generate_with_progress", answer)
    rows = [*ROWS[:3], *(finqa_row(number, split_ids=4) for number in range(2))]
    write_rows(place, rows)
    alone = measured(place, "--generate", "9")
    write_rows(place, [*rows, *(without_program(number, split_ids=4) for number in (2, 3))])
    result = measured(place, "--generate", "9")
    said = " ".join(capsys.readouterr().out.split())
    assert "Rows without a reference response, which are answered and scored, but in no loss: 2." in said
    for path in ((), ("by_source", "finqa")):
        before, after = (functools.reduce(dict.__getitem__, path, one) for one in (alone, result))
        assert (after["rows"], after["answered_rows"], after["without_target"]) == (
            before["rows"] + 2,
            before["answered_rows"] + 2,
            2,
        )
        for name in ("nll", "perplexity", "bits_per_byte", "target_tokens", "rouge_l"):
            assert (
                after["tuned"][name] == before["tuned"][name] and after["base"][name] == before["base"][name]
            )
        for name in ("nll", "bits_per_byte"):
            assert after["difference"][name] == before["difference"][name]
        assert [after[name] for name in ("improved", "tied", "regressed")] == [
            before[name] for name in ("improved", "tied", "regressed")
        ]
    # One of two, then three of four with the right result; the right program is unknown for two: none is it.
    assert (alone["tuned"]["execution_accuracy"], result["tuned"]["execution_accuracy"]) == (1 / 2, 3 / 4)
    assert (alone["tuned"]["program_accuracy"], result["tuned"]["program_accuracy"]) == (1 / 2, 1 / 4)
    assert (
        result["tuned"]["execution_accuracy_all"] == 3 / 4
        and alone["tuned"]["execution_accuracy_all"] == 1 / 4
    )
    last = result["examples"][-1]
    assert (last["target_tokens"], last["change"], last["tuned"]["nll"], last["wanted_result"]) == (
        0,
        None,
        None,
        1.5,
    )
    assert last["tuned"]["result"] == 1.5 and "rouge_l" not in last["tuned"]["scores"]
    assert last["id"] not in [id for ids in result["telling"].values() for id in ids]
    evaluation = read_evaluation(place / "evaluation.json")
    summary = {
        side: {"eos_rate": 1.0, "mean_tokens": 3.0, "rep_4": 0.0} for side in ("regular", "fine_tuned")
    }
    page = render_comparison_page(Comparison([], summary, "base", place / "adapter", evaluation=evaluation))
    assert evaluation.without_target == 2 and "On 5 held-out rows" in page


def test_rows_none_of_which_has_a_wanted_response_are_scored_alone(place, capsys):
    write_rows(place, [without_program(number, category="growth") for number in range(2)])
    assert evaluate("--dry-run") == 0
    result = measured(place, "--generate", "2", "--constrain")
    assert "nll" not in result["base"] and "nll" not in result["difference"]
    assert result["answered_rows"] == 2 and result["tuned"]["execution_accuracy"] == 0
    assert (result["improved"], result["tied"], result["regressed"]) == (0, 0, 0)
    assert "Of 0 rows 0 improved" in capsys.readouterr().out
    read_evaluation(place / "evaluation.json")
