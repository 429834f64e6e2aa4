"""`loratune preview`: rows as the model sees them, and what became of all of them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from loratune.commands.prepare import encode_all
from loratune.config.preview import PreviewSettings
from loratune.data.cuts import Fitted, first_cut, fitted
from loratune.data.example import Encoded, Record
from loratune.data.jsonl import read_records
from loratune.data.sample import draw_evenly
from loratune.data.template import load_template
from loratune.data.token_cache import key_of, recalled
from loratune.errors import UserError
from loratune.models.resolve import cache_folder, find_base
from loratune.models.tokenizer import Tokenizer
from loratune.report.terminal.rows import show_rows, show_summary
from loratune.system.read import fingerprint

PERCENTILES = (5, 50, 95, 100)


def run(settings: PreviewSettings) -> dict:
    path = settings.data / "train.jsonl" if settings.data.is_dir() else settings.data
    template = load_template(settings.template)
    records = read_source(path, settings.source)
    base = find_base(settings.model)
    tokenizer = Tokenizer.load(base.folder)
    how = template, tokenizer, settings.max_tokens
    # The key is training's: what one of the two has encoded, the other finds.
    key = key_of(fingerprint(path), base.content, template, settings.max_tokens, bos=tokenizer.bos)
    rows, counts = recalled(cache_folder(), key, lambda: encode_all(read_records(path), *how))
    sources = {record.source: None for record in records}
    summary = {
        "sources": {source: summed_up([row for row in rows if row.source == source], counts[source]) for source in sources},
        "duplicate_ids": duplicate_ids(records),
    }
    some = draw_evenly(records, settings.rows, settings.seed)
    shown = first_cut(records, settings.rows, *how) if settings.cut else fitted(some, *how)
    show_rows(shown, tokenizer)
    show_summary(summary, settings)
    return {
        "data": str(path),
        "model": base.name,
        "template": template.name,
        "max_tokens": settings.max_tokens,
        "rows": [as_json(row) for row in shown],
        **summary,
    }


def read_source(path: Path, source: str | None) -> list[Record]:
    if not path.is_file():
        raise UserError(f"--data {path}: there is no such file; make it with `loratune prepare`, or name another")
    records = read_records(path)
    chosen = [record for record in records if source in (None, record.source)]
    if not chosen:
        there = ", ".join(sorted({record.source for record in records}))
        raise UserError(f"--source {source}: {path} has no such rows; its sources are {there}")
    return chosen


def summed_up(rows: Sequence[Encoded], counts: dict[str, int]) -> dict:
    """One source's counts, tokens and lengths; `rows` are those that have a target."""
    learned = np.array([len(row.response) for row in rows], dtype=int)
    lengths = learned + [len(row.prompt) for row in rows]
    return {
        **counts,
        "tokens": int(lengths.sum()),
        "learned": int(learned.sum()),
        "row_lengths": percentiles(lengths),
        "learned_lengths": percentiles(learned),
    }


def percentiles(lengths: np.ndarray) -> dict[str, int]:
    """Share in percent -> the length that so many rows do not exceed; 0 where there are no rows."""
    found = np.percentile(lengths, PERCENTILES) if len(lengths) else np.zeros(len(PERCENTILES))
    return dict(zip(map(str, PERCENTILES), found.round().astype(int).tolist(), strict=True))


def duplicate_ids(records: Sequence[Record]) -> dict[str, int]:
    """The ids that several rows have, and how many."""
    return {id: count for id, count in Counter(record.id for record in records).items() if count > 1}


def as_json(row: Fitted) -> dict:
    """`mask` is 1 for the tokens that are learned."""
    prompt, response = (row.kept.prompt, row.kept.response) if row.kept else (row.whole.prompt, [])
    return {
        "id": row.record.id,
        "source": row.record.source,
        "ids": prompt + response,
        "mask": [0] * len(prompt) + [1] * len(response),
        "input_tokens_cut": row.input_cut,
        "response_tokens_cut": row.response_cut,
        "dropped": row.kept is None,
    }
