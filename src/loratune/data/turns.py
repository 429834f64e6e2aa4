"""Turns of a chat in a record's input: where a row is too long, the oldest give way, each as a whole."""

from itertools import pairwise

from loratune.data.records import Record

TURN_STARTS = "turn_starts"  # in a record's meta: where in the input each turn begins, in characters
SYSTEM = "System: "  # begins the turn that stays


def turns_of(record: Record) -> list[str]:
    """The turns in a record's input, each with its line end; none where the input is no chat, or was changed since."""
    starts = record.meta.get(TURN_STARTS)
    if not isinstance(starts, list) or not starts or not all(type(start) is int for start in starts):
        return []
    ends = [*starts[1:], len(record.input)]
    is_ordered = starts[0] == 0 and all(start < end for start, end in zip(starts, ends, strict=True))
    if not is_ordered or any(record.input[start - 1] != "\n" for start in starts[1:]):
        return []
    return [record.input[start:end] for start, end in pairwise([*starts, len(record.input)])]


def inputs_without_oldest(record: Record) -> list[str]:
    """The input without its oldest turn, without its two oldest ones, and so on; a system message at its beginning stays."""
    turns = turns_of(record)
    kept = 1 if turns and turns[0].startswith(SYSTEM) else 0
    return ["".join(turns[:kept] + turns[first:]).removesuffix("\n") for first in range(kept + 1, len(turns) + 1)]
