"""Stratified sample: draw a few rows evenly from all sources, always the same ones."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

from loratune.data.example import Example, Record

RecordOrExample = TypeVar("RecordOrExample", Record, Example)


def draw_stratified_sample(
    records: Sequence[RecordOrExample], count: int, seed: int
) -> list[RecordOrExample]:
    """Draw `count` records (all, if there are fewer), as evenly from the sources as possible.

    The choice depends on the records' ids and the seed alone; a larger sample contains the smaller one's
    records of each source.

    Returns:
        The records in their original order.
    """
    by_source = defaultdict(list)
    for number, record in enumerate(records):
        by_source[record.source].append(number)
    for numbers in by_source.values():
        numbers.sort(key=lambda number: hashlib.sha256(f"{seed}:{records[number].id}".encode()).digest())
    chosen: list[int] = []
    rank = 0
    while len(chosen) < min(count, len(records)):
        chosen += [numbers[rank] for _, numbers in sorted(by_source.items()) if rank < len(numbers)]
        rank += 1
    return [records[number] for number in sorted(chosen[:count])]
