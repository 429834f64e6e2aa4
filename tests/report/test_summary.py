import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratune.evaluation.result import Evaluation, EvaluationPart, ScoreChange
from loratune.report.summary import (
    build_sections,
    compute_relative_change,
    describe_comparison,
    format_measures,
    judge_change,
)
from support.evaluations import comparison, evaluation, parse, part

SMALL = st.floats(-5, 5)


@given(st.floats(0.1, 8), SMALL, SMALL, SMALL)
def test_the_change_of_the_perplexity_is_that_of_the_exponential(base, mean, one, other):
    low, high = sorted((one, other))
    change = compute_relative_change(ScoreChange(mean=mean, interval=(low, high)))
    assert math.exp(base + mean) == pytest.approx(math.exp(base) * (1 + change.mean))
    assert math.exp(base + low) == pytest.approx(math.exp(base) * (1 + change.interval[0]))
    assert change.interval[0] <= change.interval[1]


@given(SMALL, SMALL)
def test_a_measure_and_its_mirror_have_mirrored_verdicts(one, other):
    low, high = sorted((one, other))
    change, mirrored = (ScoreChange(mean=0, interval=interval) for interval in ((low, high), (-high, -low)))
    swapped = {"better": "worse", "worse": "better", "unclear": "unclear"}
    assert judge_change("↓", mirrored) == swapped[judge_change("↓", change)] == judge_change("↑", change)


def test_measures_of_a_part():
    lines = {line.name: line for line in format_measures(parse(EvaluationPart, part()))}
    loss, rouge = lines["loss, nats a token ↓"], lines["ROUGE-L, % ↑"]
    assert loss.bases == {"base_bare": "3.200", "base": "2.700", "base_chat": ""}
    assert (loss.strongest, loss.base, loss.mark_base("base"), loss.mark_base("base_bare")) == (
        "base",
        "2.700",
        "2.700*",
        "3.200",
    )
    assert (loss.tuned, loss.change, loss.interval, loss.verdict) == (
        "2.100",
        "-0.600",
        "-0.700 to -0.500",
        "better",
    )
    assert (rouge.mark_base("base"), rouge.tuned, rouge.change, rouge.interval, rouge.verdict) == (
        "10.0",
        "30.0",
        "+20.0",
        "+10.0 to +30.0",
        "better",
    )
    assert lines["stopped at EOS, %"].verdict == "changed"
    assert lines["perplexity ↓"].change == f"-{100 * (1 - math.exp(-0.6)):.1f}%"
    assert "facts" not in parse(EvaluationPart, part()).base


def test_typeset_lines_have_minus_signs():
    lines = [line.typeset() for line in format_measures(parse(EvaluationPart, part()), ["nll"])]
    assert lines[0].change == "\N{MINUS SIGN}0.600"
    assert lines[0].interval == "\N{MINUS SIGN}0.700 to \N{MINUS SIGN}0.500"
    assert lines[0].name == "loss, nats a token ↓"


def test_several_samples_have_a_standard_deviation():
    spread = {"tuned": {"rouge_l": {"mean": 0.3, "standard_deviation": 0.0149}}}
    lines = {
        line.name: line for line in format_measures(parse(EvaluationPart, part() | {"over_samples": spread}))
    }
    assert (lines["ROUGE-L, % ↑"].base, lines["ROUGE-L, % ↑"].tuned) == ("10.0", "30.0±1.5")
    assert lines["ROUGE-L, % ↑"].typeset().tuned == "30.0\u00a0±\u00a01.5"
    assert lines["loss, nats a token ↓"].tuned == "2.100"


@pytest.mark.parametrize(
    ("interval", "words"),
    [((-0.7, -0.5), "lowers"), ((0.5, 0.7), "raises"), ((-0.1, 0.1), "does not clearly change")],
)
def test_the_sentence_follows_the_interval(interval, words):
    told = describe_comparison(comparison(evaluated=evaluation() | part(*interval)))
    assert f"On 20 held-out rows the adapter {words} the perplexity from 14.90 to 8.20" in told
    assert "17 improved, 2 regressed" in told and "FinQA" not in told


def test_of_one_row_nothing_is_certain():
    assert {line.verdict for line in format_measures(parse(EvaluationPart, part() | {"rows": 1}))} == {
        "unclear"
    }
    assert "from 14.90 to 8.20: 17 improved" in describe_comparison(
        comparison(evaluated=evaluation() | {"rows": 1})
    )
    assert not any(line.interval for line in format_measures(parse(EvaluationPart, part() | {"rows": 1})))


def test_every_part_and_the_plain_text_have_a_section():
    headings = [section.heading for section in build_sections(parse(Evaluation, evaluation()))]
    kinds = [f"{name}: 20 rows, 2 answered" for name in ("all", "word", "wordb", "wordc", "wordd")]
    assert headings == [*kinds, "plain text (word): 8 pieces"]


def test_without_an_evaluation_the_sentence_is_of_the_answers():
    assert "50 % of 1 answer stop at EOS" in describe_comparison(comparison())
