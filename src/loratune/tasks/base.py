"""The interface of a task: how answers to its rows are scored, constrained and reported.

A new task is a folder with a subclass of `Task`, which overrides only what is special, and a line in
`tasks.registry.TASKS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loratune.data.example import Record
from loratune.generation.constrained import Constraint, TokenBytes
from loratune.generation.request import Answer

Result = float | int | str  # the value of an answer, such as the result of a program


@dataclass(frozen=True)
class Metric:
    """A measure that an evaluation computes, and how tables show it.

    Args:
        title: of the table's column; an arrow points to better values. Blank if no table shows the metric.
        factor: multiplies the value where it is shown.
        decimals: digits after the point where the value is shown.
        score: computes the metric from an answer, its text and its row; None if it does not apply to the row.
            `evaluation.json` holds the mean over rows.
        score_all: computes the metric from the token ids of all answers, where it is no mean over rows.
        stands_out: whether the report shows it large, above the tables.
        phrase: what it is in the report's verdict, such as "right results"; "" if it is not there.
        labels: what a score of 0 and of 1 mean beside an answer, such as "wrong result" and "right result".
    """

    title: str = ""
    factor: int = 1
    decimals: int = 3
    score: Callable[[Answer, str, Record], float | None] | None = None
    score_all: Callable[[Sequence[Sequence[int]]], float] | None = None
    stands_out: bool = False
    phrase: str = ""
    labels: tuple[str, str] | None = None


@dataclass(frozen=True)
class TaskScore:
    """A task's scores of one answer."""

    scores: Mapping[str, float] = field(default_factory=dict)  # by the names in `Task.metrics`
    result: Result | None = None  # the answer's value; None where it has none


@dataclass(frozen=True)
class BuiltInProse:
    """Plain text to measure forgetting with; no adapter is trained on it."""

    name: str
    read: Callable[[], list[str]]


class Task:
    """The base of all tasks, for rows that need nothing special.

    Methods with a record are called for rows that the task `owns`, unless they say otherwise.
    """

    metrics: Mapping[str, Metric] = {}  # of its scores, in the order of the tables' columns
    scores_over_split: Sequence[str] = ()  # scores that are also averaged over all ids of an official split
    has_results: bool = False  # whether the gold result and the answers' results are shown beside a row

    def owns(self, record: Record) -> bool:
        """Tell whether this task scores the answers to a row."""
        return True

    def score(self, text: str, record: Record) -> TaskScore:
        """Score an answer's text beyond what `METRICS` computes for every row."""
        return TaskScore()

    def get_wanted_result(self, record: Record) -> Result | None:
        """Return the value of the right answer."""
        return None

    def find_result(self, text: str) -> Result | None:
        """Return the value of a text without its row; None if it is no answer in this task's form."""
        return None

    def build_constraint(self, record: Record, vocabulary: TokenBytes) -> Constraint | None:
        """Build the constraint on the answer for constrained decoding; None without one."""
        return None

    def get_constraint_content(self, record: Record) -> Any:
        """Return, as a JSON value, what the constraint depends on besides the prompt."""
        return None

    def select_facts(self, record: Record, facts: str) -> Record | None:
        """Return a row, of any task, with the kind of facts that `facts` names.

        Returns:
            The row, unchanged if it has no such choice; None if its facts of this kind are unknown.
        """
        return record

    def describe_facts(self, record: Record) -> str:
        """Say how the facts in a row were chosen; "" if it is unknown."""
        return ""

    def count_split_ids(self, records: Sequence[Record]) -> int | None:
        """Return the number of ids in the official split of these rows; None if it is unknown."""
        return None

    def report_on(self, splits: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
        """Return the task's fields of `prepare_report.json`; `splits` holds all rows of each split."""
        return {}

    def explain_report(self, report: Mapping[str, Any]) -> list[str]:
        """Return sentences that explain what `report_on` added to the report."""
        return []
