"""`loratune evaluate`: the base and the tuned model on the same held-out rows."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from loratune.commands.constraints import constraints_for
from loratune.commands.loading import Tuned, load_tuned
from loratune.console import progress, say, warn
from loratune.data.encode import Encoded, encode_rows
from loratune.data.records import Record, read_records
from loratune.data.sample import draw_evenly
from loratune.errors import UserError
from loratune.evaluation.answers import score
from loratune.evaluation.likelihood import response_nll, target_counts
from loratune.evaluation.measure import RowLoss, RowScores, compared
from loratune.files import refuse_unwritable, write_json
from loratune.generation.both import answer_both
from loratune.models.lora import without_adapter
from loratune.report.evaluation import show_evaluation
from loratune.settings import Decoding, EvaluateSettings

PREPARED = Path("data/test.jsonl")
PARTS = ("dolly", "finqa")  # names of sources that stand for their rows in the prepared data
TOO_MANY_CUT = 0.05


def run(settings: EvaluateSettings) -> dict:
    refuse_unwritable(settings.out)
    records = read_held_out(settings.data)
    records = draw_evenly(records, settings.rows, settings.seed) if settings.rows else records
    tuned = load_tuned(settings)
    records, rows, shortened = encoded(records, tuned, settings.max_tokens)
    result = {
        "base_model": tuned.base_name,
        "adapter": str(tuned.adapter),
        "data": settings.data,
        "template": tuned.template.name,
        "decoding": decoding_of(settings),
        "shortened": shortened,
        **evaluate_rows(tuned, records, rows, settings, settings.generate, settings.constrain),
    }
    write_json(settings.out, result)
    show_evaluation(result)
    say(f"Written: {settings.out}")
    return result


def read_held_out(data: str) -> list[Record]:
    """The rows of a file, or those of one source in the prepared test data."""
    path = PREPARED if data in PARTS else Path(data)
    if not path.is_file():
        raise UserError(f"--data {data}: there is no file {path}; make it with `loratune prepare`, or name another")
    records = read_records(path)
    if data in PARTS:
        records = [record for record in records if record.source == data]
    if not records:
        raise UserError(f"--data {data}: {path} has no rows of this source")
    return records


def encoded(records: Sequence[Record], tuned: Tuned, max_tokens: int) -> tuple[list[Record], list[Encoded], dict]:
    """The records that have a target, their tokens, and how many were shortened or dropped, for each source."""
    limit = min(max_tokens, tuned.decoder.spec.max_positions)
    numbered = [replace(record, id=str(number)) for number, record in enumerate(records)]
    rows, counts = encode_rows(numbered, tuned.template, tuned.tokenizer, limit)
    if not rows:
        raise UserError(f"--max-tokens {limit}: none of the rows has room for a target; raise it")
    for source, count in counts.items():
        cut = count["inputs_cut"] + count["responses_cut"] + count["dropped"]
        if cut > TOO_MANY_CUT * count["rows"]:
            warn(f"{source}: {cut:,} of {count['rows']:,} rows were shortened or dropped to fit in {limit:,} tokens")
    return [records[int(row.id)] for row in rows], rows, counts


def evaluate_rows(
    tuned: Tuned, records: Sequence[Record], rows: Sequence[Encoded], decoding: Decoding, generate: int, constrain: bool = False
) -> dict:
    """Everything measured, over all rows and by source. `rows` are the tokens of `records`; `generate` of them are answered."""
    losses = row_losses(tuned, rows)
    place = {id(record): number for number, record in enumerate(records)}
    answered = [place[id(record)] for record in draw_evenly(records, generate, decoding.seed)]
    scored = row_scores(tuned, [records[n] for n in answered], [rows[n] for n in answered], decoding, constrain)
    scores = dict(zip(answered, scored, strict=True))

    def part(chosen: Sequence[int]) -> dict:
        return compared([losses[n] for n in chosen], [scores[n] for n in chosen if n in scores], decoding.seed)

    sources = sorted({record.source for record in records})
    by_source = {source: part([n for n, record in enumerate(records) if record.source == source]) for source in sources}
    return {**part(range(len(records))), "by_source": by_source}


def row_losses(tuned: Tuned, rows: Sequence[Encoded]) -> list[RowLoss]:
    with without_adapter(tuned.decoder), progress("base loss ", len(rows)) as advance:
        base = response_nll(tuned.decoder, rows, advance)
    with progress("tuned loss", len(rows)) as advance:
        ours = response_nll(tuned.decoder, rows, advance)
    if not np.isfinite(ours).all():
        raise UserError(f"--adapter {tuned.adapter}: its losses are not finite numbers; the adapter is broken, train it again")
    # What was scored, not what the record holds: a response may have been cut.
    sizes = [len(tuned.tokenizer.decode(row.response).encode()) for row in rows]
    return [RowLoss(*row) for row in zip(base.tolist(), ours.tolist(), target_counts(rows).tolist(), sizes, strict=True)]


def row_scores(
    tuned: Tuned, records: Sequence[Record], rows: Sequence[Encoded], decoding: Decoding, constrain: bool
) -> list[RowScores]:
    if not rows:
        return []
    constraints = constraints_for(records, tuned.tokenizer) if constrain else None
    answers = answer_both(tuned.decoder, [row.prompt for row in rows], tuned.tokenizer.eos_id, decoding, constraints)
    base, ours = (
        [score(answer, tuned.tokenizer.decode(answer.ids).strip(), record) for answer, record in zip(part, records, strict=True)]
        for part in answers
    )
    return [RowScores(first, second, facts_of(record)) for first, second, record in zip(base, ours, records, strict=True)]


def facts_of(record: Record) -> str | None:
    """gold or retrieved: how the facts of a FinQA row were chosen."""
    facts = record.meta.get("facts")
    return facts if isinstance(facts, str) else None


def decoding_of(settings: EvaluateSettings) -> dict:
    """The settings that the answers depend on; empty if none were written."""
    names = ("max_new_tokens", "temperature", "top_p", "top_k", "seed", "constrain")
    return {name: getattr(settings, name) for name in names} if settings.generate else {}
