"""Describe each held-out row: reference, answers, loss; and select the most notable rows."""

from collections.abc import Sequence

from loratune.evaluation.aggregate import TIE_THRESHOLD, get_category
from loratune.evaluation.runner import EvaluationSet, ModelResult
from loratune.evaluation.scoring import ScoredAnswer
from loratune.tasks.registry import task_of

NOTABLE_PER_KIND = 5


def build_row_results(
    evaluation_set: EvaluationSet, baselines: dict[str, ModelResult], tuned: Sequence[ModelResult]
) -> list[dict]:
    """Return one object a row, in the order of the records.

    With several adapters `tuned` describes the first one, and `adapters` describes all.
    """
    return [
        build_row_result(evaluation_set, baselines, tuned, number)
        for number in range(len(evaluation_set.records))
    ]


def build_row_result(
    evaluation_set: EvaluationSet,
    baselines: dict[str, ModelResult],
    tuned: Sequence[ModelResult],
    number: int,
) -> dict:
    record, targets = evaluation_set.records[number], int(evaluation_set.targets[number])
    task = task_of(record)

    def describe(model: ModelResult) -> dict:
        return describe_model_row(model, number, targets, with_result=task.has_results)

    parts = [
        {
            "tuned": describe(model),
            "change": compute_nll_change(baselines["base"], model, number, targets),
        }
        for model in tuned
    ]
    return {
        "id": record.id,
        "source": record.source,
        "category": get_category(record),
        "instruction": record.instruction,
        "input": record.input,
        "wanted": record.output,
        **({"wanted_result": task.get_wanted_result(record)} if task.has_results else {}),
        "target_tokens": targets,
        **{name: describe(model) for name, model in baselines.items()},
        **parts[0],
        **({"adapters": parts} if len(parts) > 1 else {}),
    }


def describe_model_row(model: ModelResult, number: int, targets: int, *, with_result: bool) -> dict:
    """Describe one model on one row: `nll` in nats a token, and its answer if there is one.

    With several samples the answer is the first one, and `samples` holds all. `nll` is None for a row without
    a reference response.
    """
    samples = [
        describe_answer(answers[number], with_result) for answers in model.answers if number in answers
    ]
    first = samples[0] if samples else {}
    return {
        "nll": float(model.nll[number] / targets) if targets else None,
        **first,
        **({"samples": samples} if len(samples) > 1 else {}),
    }


def describe_answer(scored: ScoredAnswer, with_result: bool) -> dict:
    return {
        "answer": scored.text,
        "ended": scored.answer.ended,
        "tokens": len(scored.answer.ids),
        "scores": scored.scores,
        **({"result": scored.result} if with_result else {}),
    }


def compute_nll_change(base: ModelResult, tuned: ModelResult, number: int, targets: int) -> float | None:
    """Return tuned minus base in nats a token; None for a row without a reference response."""
    return float((tuned.nll[number] - base.nll[number]) / targets) if targets else None


def select_notable(
    evaluation_set: EvaluationSet, base: ModelResult, tuned: ModelResult
) -> dict[str, list[str]]:
    """Return the ids of the rows with the largest gain, the largest loss and the smallest change.

    No id is in two of the lists.
    """
    row_changes = (
        compute_nll_change(base, tuned, number, targets)
        for number, targets in enumerate(evaluation_set.targets.tolist())
    )
    changes = {number: change for number, change in enumerate(row_changes) if change is not None}
    ascending = sorted(changes, key=changes.__getitem__)
    gained = [number for number in ascending if changes[number] < -TIE_THRESHOLD][:NOTABLE_PER_KIND]
    lost = [number for number in reversed(ascending) if changes[number] > TIE_THRESHOLD][:NOTABLE_PER_KIND]
    others = [number for number in ascending if number not in gained + lost]
    tied = sorted(others, key=lambda number: abs(changes[number]))[:NOTABLE_PER_KIND]
    kinds = {"largest_gain": gained, "largest_loss": lost, "nearest_tie": tied}
    return {
        kind: [evaluation_set.records[number].id for number in numbers] for kind, numbers in kinds.items()
    }
