"""Turn an evaluation into words and formatted numbers, the same on the terminal, the page and in Markdown."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from loratune.evaluation.metrics import METRICS, list_shown_metrics
from loratune.evaluation.result import (
    BASES,
    Evaluation,
    EvaluationPart,
    PairedScores,
    ScoreChange,
    Spread,
)
from loratune.report.schema import LogRow

BASE_NAMES = {
    "base": "the base",
    "base_bare": "the base without template",
    "base_chat": "the base in its own chat template",
}
# The columns of tables, in their order.
BASE_COLUMNS = {"base_bare": "base, no template", "base": "base", "base_chat": "base, own template"}
STRONGEST_MARK = "*"  # beside the number of the base that the change is measured against
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


@dataclass(frozen=True)
class MeasureLine:
    """A line of a table, formatted. The change is measured against the strongest base."""

    name: str
    bases: dict[str, str]  # base, base_bare, base_chat -> the number; blank where it was not measured
    strongest: str  # which of the bases
    tuned: str
    change: str = ""  # blank, as the interval, where none was measured
    interval: str = ""
    verdict: str = "unclear"  # better | worse | unclear | changed

    @property
    def base(self) -> str:
        """The number of the strongest base."""
        return self.bases[self.strongest]

    def mark_base(self, name: str) -> str:
        """Return a base's number, marked where it is the strongest of several."""
        is_marked = name == self.strongest and sum(map(bool, self.bases.values())) > 1
        return f"{self.bases[name]}{STRONGEST_MARK if is_marked else ''}"

    def typeset(self) -> "MeasureLine":
        """Return the line with typographic signs, for the page and Markdown."""
        names = ("tuned", "change", "interval")
        bases = {name: typeset(text) for name, text in self.bases.items()}
        return replace(self, bases=bases, **{name: typeset(getattr(self, name)) for name in names})


@dataclass(frozen=True)
class Section:
    """A table of one part of the rows."""

    heading: str
    lines: list[MeasureLine]


def build_sections(evaluation: Evaluation) -> list[Section]:
    """Build a table for each part of the rows, and one for the plain text."""
    sections = [
        Section(
            f"{name}: {format_count(part.rows, 'row')}, {part.answered_rows:,} answered",
            [line.typeset() for line in format_measures(part)],
        )
        for name, part in list_parts(evaluation).items()
    ]
    if plain := evaluation.forgetting:
        heading = f"plain text ({plain.text}): {format_count(plain.windows, 'piece')}"
        sections.append(Section(heading, [line.typeset() for line in format_measures(plain)]))
    return sections


def list_parts(evaluation: Evaluation) -> dict[str, EvaluationPart]:
    """Return all rows, then each source and category, unless it is the only one of its kind."""
    kinds = (evaluation.by_source, evaluation.by_category)
    return {"all": evaluation} | {
        name: part for kind in kinds if len(kind) > 1 for name, part in kind.items()
    }


def format_measures(part: PairedScores, names: Iterable[str] | None = None) -> list[MeasureLine]:
    """Format the metrics of `names`, or all that are shown, where both models were measured."""
    if names is None:
        names = list_shown_metrics()
    return [format_measure(name, part) for name in names if name in part.base and name in part.tuned]


def format_measure(name: str, part: PairedScores) -> MeasureLine:
    """Format one metric. Of a single text no change is shown: its interval would look like certainty."""
    metric, strongest = METRICS[name], find_strongest_base(name, part)
    factor, decimals, unit = metric.factor, metric.decimals, ""
    line = MeasureLine(
        metric.title,
        {base: format_figure(name, part, base) if base in part.measured_bases else "" for base in BASES},
        strongest,
        tuned=format_figure(name, part, "tuned"),
    )
    difference = part.get_difference(strongest)
    change = difference.get(name)
    if name == "perplexity":
        change = compute_relative_change(difference.get("nll"))
        factor, decimals, unit = 100, 1, "%"
    if change is None or part.text_count == 1:
        return line
    mean, low, high = (f"{factor * value:+,.{decimals}f}{unit}" for value in (change.mean, *change.interval))
    verdict = judge_change(metric.title, change)
    return replace(line, change=mean, interval=f"{low} to {high}", verdict=verdict)


def find_strongest_base(name: str, part: PairedScores) -> str:
    """Return the base that is best by this metric; by the loss, where more is neither better nor worse."""
    title = METRICS[name].title
    if "↑" not in title and "↓" not in title and name != "nll" and "nll" in part.base:
        return find_strongest_base("nll", part)
    values = {
        base: measures[name]
        for base in part.measured_bases
        if (measures := part.get_measures(base)) is not None and name in measures
    }
    best = min if "↓" in title else max
    return best(values, key=lambda base: values[base]) if values else "base"


def format_figure(name: str, part: PairedScores, model: str) -> str:
    """Format a model's number, with its deviation over several samples; "" where it was not measured."""
    measures = part.get_measures(model)
    if measures is None or name not in measures:
        return ""
    spread = part.over_samples.get(model, {}).get(name)
    return format_spread(name, spread) if spread else format_value(name, measures[name])


def format_value(name: str, value: float) -> str:
    metric = METRICS[name]
    return f"{metric.factor * value:,.{metric.decimals}f}"


def format_spread(name: str, spread: Spread) -> str:
    """Format a mean and its standard deviation."""
    return f"{format_value(name, spread.mean)}±{format_value(name, spread.standard_deviation)}"


def typeset(text: str) -> str:
    """Give numbers a minus sign, and put spaces around ± and before %."""
    text = re.sub(r"-(?=\d)", "\N{MINUS SIGN}", text)
    text = re.sub(r"(?<=\d)%", " %", text)
    return text.replace("±", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")


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


def judge_change(title: str, change: ScoreChange) -> str:
    """Say whether a change is better or worse, as the arrow in the title says, or unclear: its interval
    contains 0.
    """
    low, high = change.interval
    if low <= 0 <= high:
        return "unclear"
    if "↓" not in title and "↑" not in title:
        return "changed"
    return "better" if (high < 0) == ("↓" in title) else "worse"


def describe_comparison(comparison: Comparison) -> str:
    """Say in one sentence what changed."""
    part = comparison.evaluation
    if (
        part is None
        or "nll" not in part.difference
        or "perplexity" not in part.base.keys() & part.tuned.keys()
    ):
        return describe_answers(comparison)
    perplexity = format_measure("perplexity", part).typeset()
    verb = {"better": "lowers", "worse": "raises"}.get(perplexity.verdict, "does not clearly change")
    change = f" ({perplexity.change}, 95 % interval {perplexity.interval})" if perplexity.change else ""
    of_base = ""
    if perplexity.strongest != "base":
        of_base = f" ({BASE_NAMES[perplexity.strongest]}, which is stronger)"
    return (
        f"On {format_count(part.rows - part.without_target, 'held-out row')} the adapter {verb} the "
        f"perplexity from {perplexity.base}{of_base} to {perplexity.tuned}{change}: "
        f"{part.improved:,} improved, {part.regressed:,} regressed."
    )


def describe_forgetting(evaluation: Evaluation) -> str:
    """Say in one sentence how plain text was affected; "" where that was not measured."""
    if evaluation.forgetting is None:
        return ""
    text = evaluation.forgetting.text
    return "".join(
        f"On plain text ({text}) the perplexity goes from {line.base} to {line.tuned} "
        f"({line.change}, 95 % interval {line.interval}): where it rises, something was forgotten."
        for line in (line.typeset() for line in format_measures(evaluation.forgetting, ["perplexity"]))
        if line.change
    )


def describe_answers(comparison: Comparison) -> str:
    """Say in one sentence how the answers to the prompts differ."""
    base, tuned = comparison.summary["regular"], comparison.summary["fine_tuned"]
    return (
        f"With the adapter, {format_percent(tuned['eos_rate'])} of "
        f"{format_count(len(comparison.rows), 'answer')} stop at EOS "
        f"(without it {format_percent(base['eos_rate'])}), after {tuned['mean_tokens']:.0f} tokens on "
        "average "
        f"({base['mean_tokens']:.0f}), and {format_percent(tuned['rep_4'])} of their 4-grams are repeated "
        f"({format_percent(base['rep_4'])})."
    )


def format_count(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def format_number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.5f}".rstrip("0").rstrip(".")


def format_percent(share: float) -> str:
    return f"{100 * share:.0f} %"
