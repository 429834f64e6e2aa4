"""Score one answer to a held-out row; a score that does not apply to the row is absent."""

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
    result: Result | None  # the answer's value in the row's task, such as a program's result


def score_answer(answer: Answer, tokenizer: Tokenizer, record: Record) -> ScoredAnswer:
    """Score an answer with every metric that applies to its row, and with the row's task."""
    text = tokenizer.decode(answer.ids).strip()
    scores: dict[str, float] = {}
    for name, metric in METRICS.items():
        if metric.score and (value := metric.score(answer, text, record)) is not None:
            scores[name] = value
    task_score = task_of(record).score(text, record)
    return ScoredAnswer(answer, text, {**scores, **task_score.scores}, task_score.result)
