"""Hold an answer to a language: a token may follow if some text of the language begins with what is then
written.

Text is read as bytes, of which a byte-level tokenizer's tokens are made; so a token may end within a word, or
within a letter, and the answer is still exact. Constrained decoding: Scholak et al. 2021, "PICARD";
arXiv:2109.05093.
"""

from bisect import bisect_right
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

LanguageState = Hashable  # of a language: what must be known of the text that was read


class Language(Protocol):
    """A set of texts, as a reader that stops at the first byte which none of them has there."""

    start: LanguageState

    def after(self, state: LanguageState, piece: bytes) -> LanguageState | None:
        """The state when `piece` was read, too; None where no text of the language goes on like that."""

    def is_complete(self, state: LanguageState) -> bool:
        """Whether what was read is a text of the language."""


class TokenBytes:
    """A tokenizer's tokens as bytes: by number, and in the order of the bytes, where those that begin alike
    stand together.
    """

    def __init__(self, pieces: dict[int, bytes], eos_id: int):
        self.pieces = {token: piece for token, piece in pieces.items() if piece}
        self.eos_id = eos_id
        self.tokens = sorted(self.pieces, key=self.pieces.__getitem__)
        self.sorted_pieces = [self.pieces[token] for token in self.tokens]


@dataclass(frozen=True)
class Constraint:
    language: Language
    token_bytes: TokenBytes

    def read(self, tokens: Iterable[int]) -> LanguageState:
        """The state after an answer's first tokens, all of which were allowed."""
        state = self.language.start
        for token in tokens:
            state = self.after(state, token)
        return state

    def after(self, state: LanguageState, token: int) -> LanguageState | None:
        piece = self.token_bytes.pieces.get(token)
        return self.language.after(state, piece) if piece else None

    def is_allowed(self, state: LanguageState, token: int) -> bool:
        """End-of-text is allowed after a text of the language."""
        return (
            self.language.is_complete(state)
            if token == self.token_bytes.eos_id
            else self.after(state, token) is not None
        )

    def list_allowed(self, state: LanguageState) -> list[int]:
        """All tokens that are allowed, in order.

        There are some if each byte that a text of the language has is a token by itself, as it is in a
        byte-level tokenizer.
        """
        tokens = [self.token_bytes.eos_id] if self.language.is_complete(state) else []
        return sorted([*tokens, *self.iterate_allowed_range(state, 0, 0, len(self.token_bytes.tokens))])

    def iterate_allowed_range(self, state: LanguageState, length: int, first: int, end: int) -> Iterator[int]:
        """Of the ordered tokens from `first` to before `end`, which begin with the same `length` bytes;
        `state` is after these.

        Byte by byte, and no further than the language goes: it leaves nearly all tokens at their first byte.
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
