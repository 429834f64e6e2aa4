"""Scores of one answer to a held-out row. A score that does not apply to the row is absent."""

from dataclasses import dataclass

from loratune.data.example import Record
from loratune.evaluation.metrics import METRICS
from loratune.generation.request import Answer
from loratune.models.tokenizer import Tokenizer
from loratune.tasks.base import Result
from loratune.tasks.registry import task_of


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer, its text and its scores."""

    answer: Answer
    text: str
    scores: dict[str, float]
    result: Result | None  # what the answer amounts to for the row's task


def score_answer(answer: Answer, tokenizer: Tokenizer, record: Record) -> ScoredAnswer:
    """Score an answer by every metric that applies to its row, then by the row's task."""
    text = tokenizer.decode(answer.ids).strip()
    scores: dict[str, float] = {}
    for name, metric in METRICS.items():
        if metric.score and (value := metric.score(answer, text, record)) is not None:
            scores[name] = value
    of_task = task_of(record).score(text, record)
    return ScoredAnswer(answer, text, {**scores, **of_task.scores}, of_task.result)
