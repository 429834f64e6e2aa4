"""One model on the held-out rows: how likely it finds the wanted responses, and what it answers."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from loratune.config.evaluate import EvaluateSettings
from loratune.config.shared import Decoding
from loratune.data.example import Encoded, Record
from loratune.evaluation.likelihood import response_nll, target_counts
from loratune.evaluation.result_cache import Notebook
from loratune.evaluation.scoring import Scored, scored, table_of
from loratune.generation.both import answer
from loratune.generation.constrained import Constraint
from loratune.generation.engine import Answer
from loratune.system.cache import cache_key
from loratune.system.console import progress, say

Constraints = Sequence[Constraint | None] | None


@dataclass(frozen=True)
class HeldOut:
    """What every model is measured on."""

    records: Sequence[Record]
    answered: Sequence[int]  # numbers of the rows that are answered
    targets: np.ndarray  # [rows]: tokens whose likelihood counts; 0 for a row that has no wanted response
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


def measure(
    name: str, decoder, tokenizer, over: HeldOut, rows: Sequence[Encoded], settings: EvaluateSettings, notebook: Notebook
) -> Measured:
    """The model as the decoder is now, adapter on or off; `rows` may have prompts of another template.

    Each sample is what a run with its own seed would give: the first has `settings.seed`, the second one more.
    `notebook` is the model's own.
    """
    nll = losses(f"{name} loss", decoder, rows, notebook)
    return Measured(nll, answered(f"{name} answers", decoder, tokenizer, over, rows, settings, notebook))


def losses(title: str, decoder, rows: Sequence[Encoded], notebook: Notebook) -> np.ndarray:
    """As `response_nll`, with a progress bar, of the rows whose losses are not known yet; 0 for a row without a target."""
    with_target = [number for number, row in enumerate(rows) if row.response]
    nll = np.zeros(len(rows))
    nll[with_target] = known_losses(title, decoder, [rows[number] for number in with_target], notebook)
    return nll


def known_losses(title: str, decoder, rows: Sequence[Encoded], notebook: Notebook) -> list[float]:
    keys = [cache_key(of="loss", prompt=row.prompt, response=row.response) for row in rows]
    new = [number for number, key in enumerate(keys) if key not in notebook.known]
    with progress(title, len(new)) as advance:

        def on_rows(numbers: Sequence[int], nll: np.ndarray) -> None:
            for number, value in zip(numbers, nll.tolist(), strict=True):
                notebook.note(keys[new[number]], value)
            advance(len(numbers))

        response_nll(decoder, [rows[number] for number in new], on_rows)
    tell_known(title, len(rows) - len(new), len(rows))
    return [notebook.known[key] for key in keys]


def answered(
    title: str, decoder, tokenizer, over: HeldOut, rows: Sequence[Encoded], settings: EvaluateSettings, notebook: Notebook
) -> list[dict[int, Scored]]:
    """For each sample, the answers by the number of the row."""
    if not over.answered:
        return [{}]
    prompts = [rows[number].prompt for number in over.answered]
    keys = answer_keys(prompts, tokenizer.end_ids, over, settings)
    known = {place: Answer(**notebook.known[key]) for place, key in enumerate(keys) if key in notebook.known}
    written = answer(
        *(decoder, prompts, tokenizer.end_ids, settings, title, over.constraints, settings.samples, known),
        on_answer=lambda place, answer: notebook.note(keys[place], asdict(answer)),
    )
    tell_known(title, len(known), len(keys))
    answers = iter(written)
    return [
        {number: scored(next(answers), tokenizer, over.records[number]) for number in over.answered}
        for _ in range(settings.samples)
    ]


def answer_keys(prompts: Sequence[list[int]], end_ids: Collection[int], over: HeldOut, settings: EvaluateSettings) -> list[str]:
    """Of each answer's place, all that it depends on besides the model; of the dice only where they are thrown."""
    how = settings.model_dump(include=Decoding.model_fields.keys() - {"batch_size", "seed"})
    tables = [table_of(over.records[number]) if over.constraints else None for number in over.answered]
    return [
        cache_key(
            of="answer",
            prompt=prompt,
            ends=sorted(end_ids),
            decoding=how,
            constraint=[settings.constrain, table],
            draw=settings.temperature and [number, seed],
        )
        for seed in range(settings.seed, settings.seed + settings.samples)
        for number, (prompt, table) in enumerate(zip(prompts, tables, strict=True))
    ]


def tell_known(title: str, known: int, wanted: int) -> None:
    if known:
        say(f"{title}: {known:,} of {wanted:,} known from an earlier evaluation")
