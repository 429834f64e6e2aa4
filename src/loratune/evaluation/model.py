"""One model on the held-out rows: how likely it finds the wanted responses, and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loratune.console import progress
from loratune.data.encode import Encoded
from loratune.data.records import Record
from loratune.evaluation.answers import Scored, scored
from loratune.evaluation.likelihood import response_nll, target_counts
from loratune.generation.both import answer
from loratune.generation.constraint import Constraint
from loratune.settings import EvaluateSettings

Constraints = Sequence[Constraint | None] | None


@dataclass(frozen=True)
class HeldOut:
    """What every model is measured on."""

    records: Sequence[Record]
    answered: Sequence[int]  # numbers of the rows that are answered
    targets: np.ndarray  # [rows]: tokens whose likelihood counts
    sizes: np.ndarray  # [rows]: bytes of these
    constraints: Constraints = None  # what each answer is held to
    split_ids: int | None = None  # questions in the official part of FinQA, where all its rows are answered


@dataclass(frozen=True)
class Measured:
    """The same rows as one model sees them."""

    nll: np.ndarray  # [rows]: of the whole response, in nats
    answers: Sequence[dict[int, Scored]]  # by the number of the row; one for each seed of the sampling


def held_out(
    records: Sequence[Record],
    rows: Sequence[Encoded],
    answered: Sequence[int],
    tokenizer,
    constraints: Constraints = None,
    split_ids: int | None = None,
) -> HeldOut:
    """`rows` are the tokens of `records`; `constraints` are those of the answered ones."""
    # What is scored, not what the record holds: a response may have been cut.
    sizes = np.array([len(tokenizer.decode(row.response).encode()) for row in rows])
    return HeldOut(records, answered, target_counts(rows), sizes, constraints, split_ids)


def measure(name: str, decoder, tokenizer, over: HeldOut, rows: Sequence[Encoded], settings: EvaluateSettings) -> Measured:
    """The model as the decoder is now, adapter on or off; `rows` may have prompts of another template.

    Each sample is what a run with its own seed would give: the first has `settings.seed`, the second one more.
    """
    with progress(f"{name} loss", len(rows)) as advance:
        nll = response_nll(decoder, rows, advance)
    return Measured(nll, answered(f"{name} answers", decoder, tokenizer, over, rows, settings))


def answered(
    title: str, decoder, tokenizer, over: HeldOut, rows: Sequence[Encoded], settings: EvaluateSettings
) -> list[dict[int, Scored]]:
    """For each sample, the answers by the number of the row."""
    if not over.answered:
        return [{}]
    prompts = [rows[number].prompt for number in over.answered]
    answers = iter(answer(decoder, prompts, tokenizer.end_ids, settings, title, over.constraints, settings.samples))
    return [
        {number: scored(next(answers), tokenizer, over.records[number]) for number in over.answered}
        for _ in range(settings.samples)
    ]
