"""Row by row: what was wanted, what each model answered, and which rows tell most about the difference."""

from collections.abc import Sequence

from loratune.evaluation.aggregate import TIE, category_of
from loratune.evaluation.runner import HeldOut, Measured
from loratune.evaluation.scoring import Scored, gold_result, wants_program

TELLING = 5  # of each kind


def examples(over: HeldOut, baselines: dict[str, Measured], tuned: Sequence[Measured]) -> list[dict]:
    """One object a row, in their order. With several adapters `adapters` has each one's part; `tuned` is the first's."""
    return [example(over, baselines, tuned, number) for number in range(len(over.records))]


def example(over: HeldOut, baselines: dict[str, Measured], tuned: Sequence[Measured], number: int) -> dict:
    record, targets = over.records[number], int(over.targets[number])
    parts = [
        {"tuned": side(model, number, targets), "change": change(baselines["base"], model, number, targets)} for model in tuned
    ]
    return {
        "id": record.id,
        "source": record.source,
        "category": category_of(record),
        "instruction": record.instruction,
        "input": record.input,
        "wanted": record.output,
        **({"wanted_result": gold_result(record)} if wants_program(record) else {}),
        "target_tokens": targets,
        **{name: side(model, number, targets) for name, model in baselines.items()},
        **parts[0],
        **({"adapters": parts} if len(parts) > 1 else {}),
    }


def side(model: Measured, number: int, targets: int) -> dict:
    """One model on one row: `nll` in nats a token, and the answer where there is one; of several the first, and all `samples`.

    `nll` is None for a row without a wanted response.
    """
    samples = [told(answers[number]) for answers in model.answers if number in answers]
    first = samples[0] if samples else {}
    return {
        "nll": float(model.nll[number] / targets) if targets else None,
        **first,
        **({"samples": samples} if len(samples) > 1 else {}),
    }


def told(scored: Scored) -> dict:
    return {
        "answer": scored.text,
        "ended": scored.answer.ended,
        "tokens": len(scored.answer.ids),
        "scores": scored.scores,
        **({"result": scored.result} if "execution_accuracy" in scored.scores else {}),
    }


def change(base: Measured, tuned: Measured, number: int, targets: int) -> float | None:
    """Nats a token; negative is better. None for a row without a wanted response."""
    return float((tuned.nll[number] - base.nll[number]) / targets) if targets else None


def telling(over: HeldOut, base: Measured, tuned: Measured) -> dict[str, list[str]]:
    """Ids of the rows with the largest gain, the largest loss and the smallest change, in that order; none comes twice."""
    every = (change(base, tuned, number, targets) for number, targets in enumerate(over.targets.tolist()))
    changes = {number: value for number, value in enumerate(every) if value is not None}
    rising = sorted(changes, key=changes.__getitem__)
    gained = [number for number in rising if changes[number] < -TIE][:TELLING]
    lost = [number for number in reversed(rising) if changes[number] > TIE][:TELLING]
    others = [number for number in rising if number not in gained + lost]
    tied = sorted(others, key=lambda number: abs(changes[number]))[:TELLING]
    kinds = {"largest_gain": gained, "largest_loss": lost, "nearest_tie": tied}
    return {kind: [over.records[number].id for number in numbers] for kind, numbers in kinds.items()}
