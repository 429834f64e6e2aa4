"""What generic code asks of a task: how answers to rows of one data set are scored, constrained and reported.

A new task is a folder with a subclass of `Task`, which says only what is special, and its line in
`tasks.registry.TASKS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loratune.data.example import Record
from loratune.generation.constrained import Constraint, TokenBytes
from loratune.generation.request import Answer

Result = float | int | str  # what an answer amounts to, such as the result of a program


@dataclass(frozen=True)
class Metric:
    """A number that an evaluation computes, and how tables show it.

    Args:
        title: what a person reads; an arrow points to what is better. Blank for one that no table shows.
        factor: what the number is multiplied by where it is shown.
        decimals: digits after the point where it is shown.
        score: computes it for an answer, its text and its row; None where it does not apply to the row. Its
            mean over rows is the measure of that name in `evaluation.json`.
        score_all: computes it for the token ids of all answers together, where it is no mean over rows.
    """

    title: str = ""
    factor: int = 1
    decimals: int = 3
    score: Callable[[Answer, str, Record], float | None] | None = None
    score_all: Callable[[Sequence[Sequence[int]]], float] | None = None


@dataclass(frozen=True)
class TaskScore:
    """What a task makes of one answer."""

    scores: Mapping[str, float] = field(default_factory=dict)  # by the names in `Task.metrics`
    result: Result | None = None  # what the answer amounts to; None where it amounts to nothing


@dataclass(frozen=True)
class BuiltInProse:
    """Plain text that no adapter is trained on, with which forgetting is measured."""

    name: str
    read: Callable[[], list[str]]


class Task:
    """The task of rows that need nothing special; subclasses say what is special about theirs.

    Methods with a record are called for the rows that the task `owns`, unless they say otherwise.
    """

    metrics: Mapping[str, Metric] = {}  # of its scores, in the order in which tables show them
    scores_over_split: Sequence[str] = ()  # scores that are also averaged over all ids of an official split
    has_results: bool = False  # whether a wanted result and the answers' results are shown beside a row

    def owns(self, record: Record) -> bool:
        """Tell whether this task scores the answers to a row."""
        return True

    def score(self, text: str, record: Record) -> TaskScore:
        """Score an answer's text beyond what `METRICS` computes for every row."""
        return TaskScore()

    def get_wanted_result(self, record: Record) -> Result | None:
        """Return what the right answer amounts to."""
        return None

    def find_result(self, text: str) -> Result | None:
        """Return what a text without a row amounts to; None where it is no answer of this task's form."""
        return None

    def build_constraint(self, record: Record, vocabulary: TokenBytes) -> Constraint | None:
        """Build what the answer is held to in constrained decoding."""
        return None

    def get_constraint_content(self, record: Record) -> Any:
        """Return what the constraint depends on besides the prompt, as JSON has it."""
        return None

    def select_facts(self, record: Record, facts: str) -> Record | None:
        """Return any row with the facts that `facts` names: a row that has no such choice as it is.

        None stands for a row whose facts of this kind are unknown.
        """
        return record

    def describe_facts(self, record: Record) -> str:
        """Say how the facts that a row shows were chosen; "" where it does not tell."""
        return ""

    def count_split_ids(self, records: Sequence[Record]) -> int | None:
        """Return how many ids the official split has that these rows, all its own, are from.

        None where the rows do not tell.
        """
        return None

    def report_on(self, parts: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
        """Return what `prepare_report.json` says beyond counts; `parts` holds all rows of each split."""
        return {}

    def explain_report(self, report: Mapping[str, Any]) -> list[str]:
        """Return the sentences that a person reads of what `report_on` put into the report."""
        return []
