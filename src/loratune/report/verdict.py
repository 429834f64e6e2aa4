"""Say in one sentence what the adapter improves, and what it does not, against the strongest base."""

from collections.abc import Sequence
from dataclasses import dataclass

from loratune.evaluation.metrics import METRICS
from loratune.evaluation.result import EvaluationPart
from loratune.report.summary import MeasureLine, format_measure

STOPPING = "eos_rate"
# A model that stops repeats itself less, whatever it says.
FOLLOWS_FROM_STOPPING = ("rep_4",)
LOSS, LOSS_WITHOUT_END = "nll", "content_nll"
REFERENCE = "the strongest way to ask the base"


@dataclass(frozen=True)
class Judged:
    """A metric and how it changed."""

    name: str
    line: MeasureLine

    def describe(self) -> str:
        """Return the metric with both numbers."""
        unit = " %" if METRICS[self.name].factor == 100 else ""
        return f"{METRICS[self.name].phrase} ({self.line.base} to {self.line.tuned}{unit})"


def describe_verdict(part: EvaluationPart) -> str:
    """Say what is better, worse or unclear, each against the base that is strongest in it.

    Where all that is better comes from answers that end, that is what it says. "" where nothing was compared.
    """
    judged = [
        Judged(name, line)
        for name, metric in METRICS.items()
        if metric.phrase and name in part.base and name in part.tuned
        for line in [format_measure(name, part).typeset()]
        if line.change
    ]
    if not judged:
        return ""
    better = [one for one in judged if one.line.verdict == "better"]
    at_the_end = " (only in the token that ends an answer)" if is_lower_at_the_end_alone(part) else ""
    rest = [
        ("worse in", [one.describe() for one in judged if one.line.verdict == "worse"]),
        ("no clear change in", [METRICS[one.name].phrase for one in judged if one.line.verdict == "unclear"]),
    ]
    others = "; ".join(f"{words} {join(names)}" for words, names in rest if names)
    if stops := describe_stopping(part, better):
        return f"{'; '.join(filter(None, [stops, others]))}."
    if not better:
        return f"Nothing is clearly better than {REFERENCE}: {others}."
    described = [f"{one.describe()}{at_the_end if one.name == LOSS else ''}" for one in better]
    gains = f"better in {join(described)}"
    return f"Against {REFERENCE}: {'; '.join(filter(None, [gains, others]))}."


def describe_stopping(part: EvaluationPart, better: Sequence[Judged]) -> str:
    """Say that answers stop where that is the only gain; "" where it is not, or where they do not."""
    follows = {*FOLLOWS_FROM_STOPPING, *([LOSS] if is_lower_at_the_end_alone(part) else [])}
    if {one.name for one in better} - follows:
        return ""
    if STOPPING not in part.base or STOPPING not in part.tuned:
        return ""
    line = format_measure(STOPPING, part).typeset()
    if line.verdict != "changed" or not line.change.startswith("+"):
        return ""
    return (
        f"All that is better than {REFERENCE} is that it stops: {line.tuned} % of the answers end before the "
        f"limit ({line.base} % of the base's)"
    )


def is_lower_at_the_end_alone(part: EvaluationPart) -> bool:
    """Return whether the loss is lower only in the token that ends an answer."""
    names = (LOSS, LOSS_WITHOUT_END)
    if not all(name in part.base and name in part.tuned for name in names):
        return False
    loss, content = (format_measure(name, part).verdict for name in names)
    return loss == "better" and content != "better"


def join(names: Sequence[str]) -> str:
    """Join names to an enumeration."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
