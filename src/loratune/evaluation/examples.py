"""Describe each held-out row: reference, answers, loss; and select the most notable rows."""

from collections.abc import Sequence

from loratune.evaluation.aggregate import TIE_THRESHOLD, find_lowest_loss_base, get_category
from loratune.evaluation.result import AdapterExample, AnswerResult, EvaluatedExample, ModelExample
from loratune.evaluation.runner import EvaluationSet, ModelResult
from loratune.evaluation.scoring import ScoredAnswer
from loratune.tasks.registry import task_of

NOTABLE_PER_KIND = 5


def build_examples(
    evaluation_set: EvaluationSet, baselines: dict[str, ModelResult], tuned: Sequence[ModelResult]
) -> list[EvaluatedExample]:
    """Describe each row, in the order of the records."""
    return [
        build_example(evaluation_set, baselines, tuned, number=number)
        for number in range(len(evaluation_set.records))
    ]


def build_example(
    evaluation_set: EvaluationSet,
    baselines: dict[str, ModelResult],
    tuned: Sequence[ModelResult],
    *,
    number: int,
) -> EvaluatedExample:
    record, targets = evaluation_set.records[number], int(evaluation_set.targets[number])
    task = task_of(record)
    models = {name: describe_model(model, number, targets) for name, model in baselines.items()}
    reference = baselines[find_lowest_loss_base(evaluation_set, baselines)]
    adapters = [
        AdapterExample(
            tuned=describe_model(model, number, targets),
            change=compute_nll_change(reference, model, number=number, targets=targets),
        )
        for model in tuned
    ]
    return EvaluatedExample(
        id=record.id,
        source=record.source,
        category=get_category(record),
        instruction=record.instruction,
        input=record.input,
        wanted=record.output,
        wanted_result=task.get_wanted_result(record),
        target_tokens=targets,
        **models,
        tuned=adapters[0].tuned,
        change=adapters[0].change,
        adapters=adapters if len(adapters) > 1 else [],
        has_results=task.has_results,
    )


def describe_model(model: ModelResult, number: int, targets: int) -> ModelExample:
    """Describe one model on one row: its loss in nats a token, and its answers if there are any."""
    samples = [build_answer(answers[number]) for answers in model.answers if number in answers]
    return ModelExample(
        nll=float(model.nll[number] / targets) if targets else None,
        **(vars(samples[0]) if samples else {}),
        samples=samples if len(samples) > 1 else [],
    )


def build_answer(scored: ScoredAnswer) -> AnswerResult:
    return AnswerResult(
        answer=scored.text,
        ended=scored.answer.ended,
        tokens=len(scored.answer.ids),
        scores=scored.scores,
        result=scored.result,
    )


def compute_nll_change(base: ModelResult, tuned: ModelResult, *, number: int, targets: int) -> float | None:
    """Return tuned minus base in nats a token; None for a row without a reference response."""
    return float((tuned.nll[number] - base.nll[number]) / targets) if targets else None


def select_notable(
    evaluation_set: EvaluationSet, base: ModelResult, tuned: ModelResult
) -> dict[str, list[str]]:
    """Return the ids of the rows with the largest gain, the largest loss and the smallest change.

    No id is in two of the lists.
    """
    row_changes = (
        compute_nll_change(base, tuned, number=number, targets=targets)
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
