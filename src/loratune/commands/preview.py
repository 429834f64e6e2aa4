"""`loratune preview`: rows as the model sees them, and counts of all rows."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from loratune.config.preview import PreviewConfig
from loratune.data.chat_template import ChatTemplate
from loratune.data.example import Example, Record
from loratune.data.jsonl import read_records
from loratune.data.resolve_template import check_template_choice, fit_tokenizer, resolve_template
from loratune.data.sample import draw_stratified_sample
from loratune.data.token_cache import load_or_tokenize, make_token_cache_key
from loratune.data.tokenize import tokenize_with_progress
from loratune.data.truncated_rows import Truncation, compute_truncations, find_truncated
from loratune.errors import UserError
from loratune.models.resolve import resolve_model
from loratune.models.tokenizer import Tokenizer
from loratune.report.terminal.rows import show_rows, show_summary
from loratune.system.cache import get_cache_folder
from loratune.system.read import hash_file

PERCENTILES = (5, 50, 95, 100)


def run(settings: PreviewConfig) -> dict:
    path = settings.data / "train.jsonl" if settings.data.is_dir() else settings.data
    check_template_choice(settings.template)
    records = read_source(path, settings.source)
    base = resolve_model(settings.model)
    tokenizer = Tokenizer.load(base.folder)
    template = resolve_template(settings.template, tokenizer)
    tokenizer = fit_tokenizer(tokenizer, template)
    options = {"max_tokens": settings.max_tokens, "learn": settings.learn}
    # The key is the same as in training, so that both share the cached tokens.
    key = make_token_cache_key(hash_file(path), base.content, template, bos=tokenizer.bos, **options)
    rows, counts = load_or_tokenize(
        get_cache_folder(),
        key,
        lambda: tokenize_with_progress(read_records(path), template, tokenizer, **options),
    )
    sources = {record.source: None for record in records}
    summary = {
        "sources": {
            source: summarise_source([row for row in rows if row.source == source], counts[source])
            for source in sources
        },
        "duplicate_ids": count_duplicate_ids(records),
    }
    some = draw_stratified_sample(records, settings.rows, settings.seed)
    if settings.cut:
        shown = find_truncated(records, settings.rows, template, tokenizer=tokenizer, **options)
    else:
        shown = compute_truncations(some, template, tokenizer, **options)
    end = template.end_token if isinstance(template, ChatTemplate) else ""
    show_rows(shown, tokenizer, end=end)
    show_summary(summary, settings.max_tokens)
    return {
        "data": str(path),
        "model": base.name,
        "template": template.name,
        "max_tokens": settings.max_tokens,
        "rows": [row_to_json(row) for row in shown],
        **summary,
    }


def read_source(path: Path, source: str | None) -> list[Record]:
    if not path.is_file():
        raise UserError(
            "there is no such file",
            setting="data",
            value=path,
            remedy="make it with `loratune prepare`, or name another",
        )
    records = read_records(path)
    chosen = [record for record in records if source in (None, record.source)]
    if not chosen:
        sources = ", ".join(sorted({record.source for record in records}))
        raise UserError(
            f"{path} has no such rows", setting="source", value=source, remedy=f"its sources are {sources}"
        )
    return chosen


def summarise_source(rows: Sequence[Example], counts: dict[str, int]) -> dict:
    """Summarise one source's counts, tokens and lengths; `rows` are the ones that have a target."""
    learned = np.array([len(row.learned) for row in rows], dtype=int)
    lengths = np.array([len(row.prompt) + len(row.response) for row in rows], dtype=int)
    return {
        **counts,
        "tokens": int(lengths.sum()),
        "learned": int(learned.sum()),
        "row_lengths": compute_percentiles(lengths),
        "learned_lengths": compute_percentiles(learned),
    }


def compute_percentiles(lengths: np.ndarray) -> dict[str, int]:
    """Map each share in percent to the length that so many rows do not exceed; 0 without rows."""
    percentiles = np.percentile(lengths, PERCENTILES) if len(lengths) else np.zeros(len(PERCENTILES))
    return dict(zip(map(str, PERCENTILES), percentiles.round().astype(int).tolist(), strict=True))


def count_duplicate_ids(records: Sequence[Record]) -> dict[str, int]:
    """Map each id that several rows share to their number."""
    counts = Counter(record.id for record in records)
    return {record_id: count for record_id, count in counts.items() if count > 1}


def row_to_json(row: Truncation) -> dict:
    """Describe an example as JSON; `mask` is 1 for the tokens that are learned."""
    example = row.example or replace(row.untruncated, response=[], context=())
    learned = [int(example.is_learned(number)) for number in range(len(example.response))]
    return {
        "id": row.record.id,
        "source": row.record.source,
        "ids": example.prompt + example.response,
        "mask": [0] * len(example.prompt) + learned,
        "input_tokens_cut": row.input_tokens_cut,
        "response_tokens_cut": row.response_tokens_cut,
        "dropped": row.example is None,
    }
