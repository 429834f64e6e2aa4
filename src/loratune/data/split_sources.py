"""Split the rows of several sources into train, val and test, without duplicates and leaks between them."""

from collections.abc import Sequence

from loratune.data.compared_texts import hash_content
from loratune.data.dedup import remove_duplicates
from loratune.data.example import Record
from loratune.data.leakage import remove_leaks, remove_near_duplicates
from loratune.data.prepare_report import count_source_rows
from loratune.data.sources.loaded import SourceData
from loratune.data.split import HELD_OUT, SPLITS, choose_drawn_splits, split_records


def split_sources(
    loaded: Sequence[SourceData], *, seed: int, val_fraction: float
) -> tuple[dict[str, list[Record]], dict[str, dict]]:
    """Split the rows of all sources into train, val and test, without duplicates and leaks.

    Args:
        loaded: the sources.
        seed: of the split.
        val_fraction: share of the groups held out for val, and as much again for test.

    Returns:
        The records of each part, and for each source what became of its rows.
    """
    # Of duplicates the first stays: that of the latest part, whatever the order in which the sources were
    # named.
    ranked = sorted(loaded, key=lambda one: SPLITS.index(one.split) if one.split else -1, reverse=True)
    # Official held-out splits, whose rows have groups, are scored over all of their ids, also where one page
    # was asked the same twice. The user's own held-out files stay whole, too.
    official = [
        one.records
        for one in ranked
        if one.split in HELD_OUT and (one.own or all(record.group for record in one.records))
    ]
    distinct = remove_duplicates([record for one in ranked for record in one.records], official)
    by_content = {hash_content(record): one.split for one in reversed(ranked) for record in one.records}
    own_split = {record.id: by_content[hash_content(record)] for record in distinct}
    held_out_files = {(one.name, one.split) for one in loaded if one.own}
    kept = {record.id for record in distinct if (record.source, own_split[record.id]) in held_out_files}
    # A source may fix both the splits and the groups, such as pages; everything else is grouped by likeness.
    fixed = [record for record in distinct if record.group and own_split[record.id] and record.id not in kept]
    fixed_ids = {record.id for record in fixed}
    others = [record for record in distinct if record.id not in fixed_ids]
    options = {
        "drawn_splits": choose_drawn_splits(loaded),
        "seed": seed,
        "val_fraction": val_fraction,
    }
    divided = split_records(others, own_split, **options)
    parts: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for record in fixed:
        parts[own_split[record.id] or "train"].append(record)
    for record, split in zip(divided.records, divided.splits, strict=True):
        parts[split].append(record)
    parts, copies = remove_near_duplicates(
        parts, fixed + [record for record in divided.records if record.id in kept], kept
    )
    parts, leaks = remove_leaks(parts, kept)
    return parts, {
        name: count_source_rows(name, loaded, distinct, splits=parts, leaks=copies + leaks)
        | {"notes": [*divided.notes.get(name, []), *describe_missing_targets(name, parts)]}
        for name in dict.fromkeys(one.name for one in loaded)
    }


def describe_missing_targets(source: str, parts: dict[str, list[Record]]) -> list[str]:
    counts = {
        split: sum(one.source == source and not one.has_target for one in part)
        for split, part in parts.items()
    }
    return [
        f"rows in {split} without a reference response, which are answered and scored by their result, but "
        f"are in no loss: {count:,}"
        for split, count in counts.items()
        if count
    ]


def count_shared_rows(loaded: Sequence[SourceData]) -> int:
    """Count the rows that are also in the user's own files for val or test, and so are not trained on."""
    held_out = {hash_content(record) for one in loaded if one.own for record in one.records}
    return sum(hash_content(record) in held_out for one in loaded if not one.own for record in one.records)
