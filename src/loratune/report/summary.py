"""From measured numbers to what a person reads first: the same words and numbers on the page and in
Markdown.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from loratune.evaluation.metrics import METRICS, list_shown_metrics
from loratune.report.schema import Evaluation, EvaluationPart, LogRow, PairedScores, ScoreChange

MAX_NATS = 13.0  # of a change of the loss: a perplexity 440,000 times as high is as bad as any


@dataclass(frozen=True)
class Comparison:
    """Everything that a report shows. Only the answers are always there."""

    rows: Sequence[dict]  # as in model_comparison.json
    summary: Mapping[str, dict[str, float]]
    base: str
    adapter: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    training: Sequence[LogRow] = ()
    # Which data -> source -> what happened to its rows -> how many.
    counts: Mapping[str, Mapping[str, Mapping[str, int]]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    commands: Sequence[str] = ()

    @property
    def title(self) -> str:
        return f"{self.base} + {self.adapter.resolve().name}"


class MeasureLine(NamedTuple):
    """A line of a table, in words."""

    name: str
    bare: str  # the base with a bare prompt; blank where that was not measured
    base: str
    tuned: str
    change: str  # blank, as the interval, where none was measured
    interval: str
    verdict: str  # better | worse | unclear | changed


class Section(NamedTuple):
    heading: str
    lines: list[MeasureLine]


def build_sections(evaluation: Evaluation) -> list[Section]:
    """A table for each part of the rows, and for the plain text."""
    found = [
        Section(
            f"{name}: {format_count(part.rows, 'row')}, {part.answered_rows:,} answered",
            format_measures(part),
        )
        for name, part in list_parts(evaluation).items()
    ]
    if plain := evaluation.forgetting:
        found.append(
            Section(
                f"plain text ({plain.text}): {format_count(plain.windows, 'piece')}", format_measures(plain)
            )
        )
    return found


def list_parts(evaluation: Evaluation) -> dict[str, EvaluationPart]:
    """All rows, then each source and category; a part that is the only one of its kind says nothing new."""
    kinds = (evaluation.by_source, evaluation.by_category)
    return {"all": evaluation} | {
        name: part for kind in kinds if len(kind) > 1 for name, part in kind.items()
    }


def format_measures(part: PairedScores, names: Iterable[str] | None = None) -> list[MeasureLine]:
    """Those of `names`, or of all metrics that are shown, that both models were measured by."""
    names = list_shown_metrics() if names is None else names
    return [format_measure(name, part) for name in names if name in part.base and name in part.tuned]


def format_measure(name: str, part: PairedScores) -> MeasureLine:
    metric = METRICS[name]
    factor, decimals = metric.factor, metric.decimals
    line = MeasureLine(
        name=metric.title,
        bare=format_figure(name, part, "base_bare"),
        base=format_figure(name, part, "base"),
        tuned=format_figure(name, part, "tuned"),
        change="",
        interval="",
        verdict="unclear",
    )
    change, unit = part.difference.get(name), ""
    if name == "perplexity":
        change, unit = compute_relative_change(part.difference.get("nll")), " %"
        factor, decimals = 100, 1
    if change is None or part.text_count == 1:  # an interval over one text would look like certainty
        return line
    mean, low, high = (
        format_signed(factor * value, decimals) + unit for value in (change.mean, *change.interval)
    )
    return line._replace(change=mean, interval=f"{low} to {high}", verdict=judge_change(metric.title, change))


def format_figure(name: str, part: PairedScores, side: str) -> str:
    """A model's number, with its standard deviation where there were several samples; blank where it was not
    measured.
    """
    factor, decimals = METRICS[name].factor, METRICS[name].decimals
    values, spread = getattr(part, side), part.over_samples.get(side, {}).get(name)
    deviation = f"\u00a0±\u00a0{factor * spread.standard_deviation:,.{decimals}f}" if spread else ""
    return f"{factor * values[name]:,.{decimals}f}{deviation}" if name in values else ""


def compute_relative_change(nll: ScoreChange | None) -> ScoreChange | None:
    """Return the change of the perplexity as a share of it.

    exp is monotone, so the interval of the loss gives the interval of the perplexity.
    """
    if nll is None:
        return None
    low, high = map(convert_nats_to_share, nll.interval)
    return ScoreChange(mean=convert_nats_to_share(nll.mean), interval=(low, high))


def convert_nats_to_share(nats: float) -> float:
    return math.expm1(min(nats, MAX_NATS))


def format_signed(value: float, decimals: int) -> str:
    return f"{value:+,.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def judge_change(words: str, change: ScoreChange) -> str:
    """An interval that holds 0 is no clear change; without an arrow, more is neither better nor worse."""
    low, high = change.interval
    if low <= 0 <= high:
        return "unclear"
    if "↓" not in words and "↑" not in words:
        return "changed"
    return "better" if (high < 0) == ("↓" in words) else "worse"


def describe_comparison(comparison: Comparison) -> str:
    """What changed, in one sentence."""
    if comparison.evaluation is None or "nll" not in comparison.evaluation.difference:
        return describe_answers(comparison)
    part = comparison.evaluation
    if "perplexity" not in part.base.keys() & part.tuned.keys():
        return describe_answers(comparison)
    perplexity = format_measure("perplexity", part)
    verb = {"better": "lowers", "worse": "raises"}.get(perplexity.verdict, "does not clearly change")
    change = f" ({perplexity.change}, 95 % interval {perplexity.interval})" if perplexity.change else ""
    right = format_measures(part, ["execution_accuracy"])
    finqa = f", and right FinQA results go from {right[0].base} to {right[0].tuned} %" if right else ""
    return (
        f"On {format_count(part.rows - part.without_target, 'held-out row')} the adapter {verb} the "
        "perplexity "
        f"from {perplexity.base} to {perplexity.tuned}{change}: "
        f"{part.improved:,} improved, {part.regressed:,} regressed{finqa}."
    )


def describe_forgetting(evaluation: Evaluation) -> str:
    """Say in one sentence what became of plain text; blank where that was not measured."""
    if evaluation.forgetting is None:
        return ""
    text = evaluation.forgetting.text
    return "".join(
        f"On plain text ({text}) the perplexity goes from {line.base} to {line.tuned} "
        f"({line.change}, 95 % interval {line.interval}): where it rises, something was forgotten."
        for line in format_measures(evaluation.forgetting, ["perplexity"])
        if line.change
    )


def describe_answers(comparison: Comparison) -> str:
    base, tuned = comparison.summary["regular"], comparison.summary["fine_tuned"]
    return (
        f"With the adapter, {format_percent(tuned['eos_rate'])} of "
        f"{format_count(len(comparison.rows), 'answer')} stop at EOS "
        f"(without it {format_percent(base['eos_rate'])}), after {tuned['mean_tokens']:.0f} tokens on "
        "average "
        f"({base['mean_tokens']:.0f}), and {format_percent(tuned['rep_4'])} of their 4-grams are repeated "
        f"({format_percent(base['rep_4'])})."
    )


def format_count(number_: int, thing: str) -> str:
    return f"{number_:,} {thing}{'' if number_ == 1 else 's'}"


def format_number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.5f}".rstrip("0").rstrip(".")


def format_percent(share: float) -> str:
    return f"{100 * share:.0f} %"
