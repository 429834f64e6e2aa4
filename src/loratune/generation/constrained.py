"""Constrained decoding: a token is allowed if some text of a language begins with the answer so far.

Text is read as bytes, of which a byte-level tokenizer's tokens consist, so the constraint is exact even where
a token ends within a word or a character. Scholak et al. 2021, "PICARD"; arXiv:2109.05093.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

LanguageState = Any  # what a language's reader must remember of the text so far


class Language(Protocol):
    """A set of texts, as an incremental reader that stops at the first byte at which no text continues."""

    @property
    def start(self) -> LanguageState:
        """The state before any text."""
        ...

    def after(self, state: LanguageState, piece: bytes, /) -> LanguageState | None:
        """Return the state after `piece`; None where no text of the language continues like that."""
        ...

    def is_complete(self, state: LanguageState, /) -> bool:
        """Return whether the text that was read is one of the language."""
        ...


class TokenBytes:
    """A tokenizer's tokens as bytes: by id, and sorted, so that tokens with the same prefix are adjacent."""

    def __init__(self, pieces: dict[int, bytes], eos_id: int):
        self.pieces = {token: piece for token, piece in pieces.items() if piece}
        self.eos_id = eos_id
        self.tokens = sorted(self.pieces, key=self.pieces.__getitem__)
        self.sorted_pieces = [self.pieces[token] for token in self.tokens]


@dataclass(frozen=True)
class Constraint:
    """The language that an answer must belong to, and the tokens that it is written with."""

    language: Language
    token_bytes: TokenBytes

    def read(self, tokens: Iterable[int]) -> LanguageState:
        """Return the state after an answer's first tokens, all of which were allowed."""
        state = self.language.start
        for token in tokens:
            state = self.after(state, token)
        return state

    def after(self, state: LanguageState, token: int) -> LanguageState | None:
        """Return the state after a token; None where it is not allowed."""
        piece = self.token_bytes.pieces.get(token)
        return self.language.after(state, piece) if piece else None

    def is_allowed(self, state: LanguageState, token: int) -> bool:
        """Return whether a token may follow; EOS may follow a text of the language."""
        return (
            self.language.is_complete(state)
            if token == self.token_bytes.eos_id
            else self.after(state, token) is not None
        )

    def list_allowed(self, state: LanguageState) -> list[int]:
        """List all tokens that are allowed, in ascending order.

        There is at least one if each byte of the language's texts is a token by itself, as it is in a
        byte-level tokenizer.
        """
        tokens = [self.token_bytes.eos_id] if self.language.is_complete(state) else []
        return sorted([*tokens, *self.iterate_allowed_range(state, 0, 0, len(self.token_bytes.tokens))])

    def iterate_allowed_range(self, state: LanguageState, length: int, first: int, end: int) -> Iterator[int]:
        """Yield the allowed tokens among the sorted ones from `first` up to, but not including, `end`.

        They share their first `length` bytes, after which the language is in `state`. The search goes byte by
        byte and only as far as the language allows: most tokens are ruled out by their first byte.
        """
        tokens, ordered = self.token_bytes.tokens, self.token_bytes.sorted_pieces
        while first < end and len(ordered[first]) == length:
            yield tokens[first]
            first += 1
        while first < end:
            byte = ordered[first][length : length + 1]
            last = bisect_right(ordered, byte, first, end, key=lambda piece: piece[length : length + 1])
            if (further := self.language.after(state, byte)) is not None:
                yield from self.iterate_allowed_range(further, length + 1, first, last)
            first = last
