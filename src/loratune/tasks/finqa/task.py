"""FinQA as a task: scoring, constraints and reports of its rows."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from loratune.data.example import Record
from loratune.data.split import HELD_OUT
from loratune.generation.constrained import Constraint, TokenBytes
from loratune.tasks.base import Metric, Result, Task, TaskScore
from loratune.tasks.finqa.constraint import build_program_constraint
from loratune.tasks.finqa.evidence import compute_fact_recall, replace_with_gold_facts
from loratune.tasks.finqa.program import execute_text
from loratune.tasks.finqa.scoring import asks_for_program, get_gold_result, get_table, score_program


class FinqaTask(Task):
    """The task of rows whose answer is a program over a page's facts."""

    metrics = MappingProxyType(
        {
            "execution_accuracy": Metric(
                "right results, % ↑",
                100,
                1,
                stands_out=True,
                phrase="right FinQA results",
                labels=("wrong result", "right result"),
            ),
            "program_accuracy": Metric(
                "right programs, % ↑",
                100,
                1,
                stands_out=True,
                labels=("another program", "the gold program"),
            ),
            "execution_accuracy_all": Metric("right results (all), % ↑", 100, 1),
            "program_accuracy_all": Metric("right programs (all), % ↑", 100, 1),
            "valid_programs": Metric("valid programs, % ↑", 100, 1),
        }
    )
    scores_over_split = ("execution_accuracy", "program_accuracy")
    has_results = True

    def owns(self, record: Record) -> bool:
        return asks_for_program(record)

    def score(self, text: str, record: Record) -> TaskScore:
        return score_program(text, record)

    def get_wanted_result(self, record: Record) -> Result | None:
        return get_gold_result(record)

    def find_result(self, text: str) -> Result | None:
        return execute_text(text)

    def build_constraint(self, record: Record, vocabulary: TokenBytes) -> Constraint:
        return build_program_constraint(record, vocabulary)

    def get_constraint_content(self, record: Record) -> Any:
        return get_table(record)

    def select_facts(self, record: Record, facts: str) -> Record | None:
        if facts == "gold" and "facts" in record.meta:
            return replace_with_gold_facts(record)
        return record

    def describe_facts(self, record: Record) -> str:
        facts = record.meta.get("facts")
        return facts if isinstance(facts, str) else ""

    def count_split_ids(self, records: Sequence[Record]) -> int | None:
        ids = [record.meta.get("split_ids") for record in records]
        if len(set(map(str, ids))) != 1:
            return None
        return ids[0] if isinstance(ids[0], int) and ids[0] >= len(records) else None

    def report_on(self, splits: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
        recalls = {split: compute_fact_recall(splits[split]) for split in HELD_OUT}
        return {"fact_recall": {split: recall for split, recall in recalls.items() if recall}}

    def explain_report(self, report: Mapping[str, Any]) -> list[str]:
        limit = f"`fact_tokens` {report['settings']['fact_tokens']}"
        return [
            f"FinQA {split}: all gold facts are kept in {recall['all_gold_facts']:.1%} of the "
            f"{recall['rows']:,} rows where they are known ({limit})"
            for split, recall in report["fact_recall"].items()
        ]
