"""Leakage between splits: remove rows that are too similar to rows of another split, and count them."""

from collections import Counter
from collections.abc import Collection, Sequence
from itertools import chain

from loratune.data.dedup import (
    INPUT_SIMILARITY,
    INSTRUCTION_SIMILARITY,
    extract_word_sets,
    find_similar_labels,
)
from loratune.data.example import Record
from loratune.data.split import SPLITS

RemovedCounts = Counter[tuple[str, str]]  # (source, reason): records
LIKE_HELD_OUT = "near-duplicate of a held-out row"
LIKE_TRAINING = "near-duplicate of a row to train on"


def remove_near_duplicates(
    splits: dict[str, list[Record]], fixed: Sequence[Record], protected: Collection[str] = ()
) -> tuple[dict[str, list[Record]], RemovedCounts]:
    """Remove rows that are near-duplicates, by question or input, of a fixed row in another split.

    Fixed rows of one source stay, similar or not: FinQA asks the same question about several pages. Between
    two sources with fixed rows, those of the earlier split are removed.

    Args:
        splits: the records of each split.
        fixed: the records among them whose source says both their split and their group.
        protected: ids of records that are never removed.

    Returns:
        The records of each split, and how many were removed, by source and reason.
    """
    all_records = [*chain(*splits.values())]
    questions, inputs = (
        dict(zip((one.id for one in all_records), words, strict=True))
        for words in extract_word_sets(all_records)
    )
    fixed_ids = {record.id for record in fixed}
    reasons: dict[str, str] = {}
    for source in dict.fromkeys(record.source for record in fixed):
        source_ids = {record.id for record in fixed if record.source == source}
        placed = [(record, split) for split in SPLITS for record in splits[split]]
        references = [(record, split) for record, split in placed if record.id in source_ids]
        candidates = [
            (record, split)
            for record, split in placed
            if record.id not in source_ids and record.id not in protected
        ]
        by_question = find_similar_labels(
            [questions[one.id] for one, _ in candidates],
            [(questions[one.id], split) for one, split in references],
            INSTRUCTION_SIMILARITY,
        )
        by_input = find_similar_labels(
            [inputs[one.id] for one, _ in candidates],
            [(inputs[one.id], split) for one, split in references],
            INPUT_SIMILARITY,
        )
        for (record, split), *similar_splits in zip(candidates, by_question, by_input, strict=True):
            prevailing = SPLITS[SPLITS.index(split) + 1 :] if record.id in fixed_ids else SPLITS
            if clashes := set().union(*similar_splits).intersection(prevailing) - {split}:
                reasons[record.id] = LIKE_TRAINING if clashes == {"train"} else LIKE_HELD_OUT
    removed = RemovedCounts(
        (record.source, reasons[record.id]) for record in chain(*splits.values()) if record.id in reasons
    )
    return {
        split: [record for record in records if record.id not in reasons] for split, records in splits.items()
    }, removed


def remove_leaks(
    splits: dict[str, list[Record]], protected: Collection[str] = ()
) -> tuple[dict[str, list[Record]], RemovedCounts]:
    """Remove rows whose group is in a later split too, in the order train, val, test.

    There are such rows only where a source has splits of its own.

    Args:
        splits: the records of each split.
        protected: ids of records that are never removed.

    Returns:
        The records of each split, and how many were removed, by source and reason.
    """
    remaining, removed = {}, RemovedCounts()
    held_out: set[str] = set()
    for split in reversed(SPLITS):
        leaks = {
            record.id for record in splits[split] if record.group in held_out and record.id not in protected
        }
        remaining[split] = [record for record in splits[split] if record.id not in leaks]
        removed.update((record.source, LIKE_HELD_OUT) for record in splits[split] if record.id in leaks)
        held_out |= {record.group for record in splits[split]}
    return {split: remaining[split] for split in SPLITS}, removed
