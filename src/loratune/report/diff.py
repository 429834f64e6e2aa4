"""Find where two texts differ, word by word."""

from collections.abc import Iterator
from difflib import SequenceMatcher
from itertools import groupby
from typing import NamedTuple

from loratune.data.words import split_tokens as tokens_of

# A shorter match between two changes is chance ("the", a comma) and would only tear them apart.
MIN_SHARED_WORDS = 2


class Piece(NamedTuple):
    text: str
    shared: bool  # the other text has it too


def find_differences(first: str, second: str) -> tuple[list[Piece], list[Piece]]:
    """Cut both texts into pieces, shared or not.

    The pieces of a text, joined, are the text; the shared pieces of both are the same, in the same order.
    """
    a, b = tokens_of(first), tokens_of(second)
    matches = [
        match for match in SequenceMatcher(None, a, b).get_matching_blocks() if is_notable(match, a, b)
    ]
    return (
        list(split_pieces(a, [(match.a, match.a + match.size) for match in matches])),
        list(split_pieces(b, [(match.b, match.b + match.size) for match in matches])),
    )


def is_notable(match, a: list[str], b: list[str]) -> bool:
    """Return whether a match is more than chance: several words, or at the beginning or end of both."""
    words = sum(token[0].isalnum() for token in a[match.a : match.a + match.size])
    begin = match.a == match.b == 0
    end = match.a + match.size == len(a) and match.b + match.size == len(b)
    return match.size > 0 and (words >= MIN_SHARED_WORDS or begin or end)


def split_pieces(tokens: list[str], shared: list[tuple[int, int]]) -> Iterator[Piece]:
    in_both = [False] * len(tokens)
    for start, stop in shared:
        in_both[start:stop] = [True] * (stop - start)
    for is_shared, run in groupby(zip(tokens, in_both, strict=True), key=lambda pair: pair[1]):
        yield Piece("".join(token for token, _ in run), is_shared)
