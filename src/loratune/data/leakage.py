"""Rows that are too much like rows of another part give way, so that nothing held out was trained on.

They are counted by source and reason.
"""

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
    parts: dict[str, list[Record]], fixed: Sequence[Record], kept: Collection[str] = ()
) -> tuple[dict[str, list[Record]], RemovedCounts]:
    """No row that is nearly, in its question or its input, a row that another source keeps in another part.

    `fixed` are the records, among those of `parts`, whose source says both their part and their group. Within
    one source these stand as they are, alike or not: FinQA asks the same of several pages. Between two such
    sources the earlier part gives way; any other row gives way to both. Those whose ids are `kept` give way
    to none.
    """
    everything = [*chain(*parts.values())]
    asked, inputs = (
        dict(zip((one.id for one in everything), words, strict=True))
        for words in extract_word_sets(everything)
    )
    stands = {record.id for record in fixed}
    reasons: dict[str, str] = {}
    for source in dict.fromkeys(record.source for record in fixed):
        own = {record.id for record in fixed if record.source == source}
        rows = [(record, split) for split in SPLITS for record in parts[split]]
        standing = [(record, split) for record, split in rows if record.id in own]
        others = [(record, split) for record, split in rows if record.id not in own and record.id not in kept]
        by_question = find_similar_labels(
            [asked[one.id] for one, _ in others],
            [(asked[one.id], split) for one, split in standing],
            INSTRUCTION_SIMILARITY,
        )
        by_input = find_similar_labels(
            [inputs[one.id] for one, _ in others],
            [(inputs[one.id], split) for one, split in standing],
            INPUT_SIMILARITY,
        )
        for (record, split), *splits in zip(others, by_question, by_input, strict=True):
            stronger = SPLITS[SPLITS.index(split) + 1 :] if record.id in stands else SPLITS
            if found := set().union(*splits).intersection(stronger) - {split}:
                reasons[record.id] = LIKE_TRAINING if found == {"train"} else LIKE_HELD_OUT
    removed = RemovedCounts(
        (record.source, reasons[record.id]) for record in chain(*parts.values()) if record.id in reasons
    )
    return {
        split: [record for record in part if record.id not in reasons] for split, part in parts.items()
    }, removed


def remove_leaks(
    parts: dict[str, list[Record]], kept: Collection[str] = ()
) -> tuple[dict[str, list[Record]], RemovedCounts]:
    """No group in two parts: train gives up what val or test hold, val what test holds, but for ids in
    `kept`.

    Only where a source fixes its own parts can there be anything to give up.
    """
    left, removed = {}, RemovedCounts()
    held_out: set[str] = set()
    for split in reversed(SPLITS):
        leaks = {record.id for record in parts[split] if record.group in held_out and record.id not in kept}
        left[split] = [record for record in parts[split] if record.id not in leaks]
        removed.update((record.source, LIKE_HELD_OUT) for record in parts[split] if record.id in leaks)
        held_out |= {record.group for record in parts[split]}
    return {split: left[split] for split in SPLITS}, removed
