"""A few rows to stand for many: always the same ones, evenly from all sources."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

from loratune.data.example import Example, Record

RecordOrExample = TypeVar("RecordOrExample", Record, Example)


def draw_stratified_sample(
    records: Sequence[RecordOrExample], count: int, seed: int
) -> list[RecordOrExample]:
    """`count` records (all, if there are fewer), as evenly from the sources as these allow, in their original
    order.

    Which ones is a function of the records' ids and the seed; a larger draw contains the smaller one's
    records of each source.
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
