"""Prompt lookup decoding (Saxena 2023): guess the next tokens from what followed the last tokens before.

Answers quote their prompts and repeat themselves. A guess only adds tokens to a call that reads all weights
anyway, and the model's own choice at each token decides.
"""

from collections.abc import Iterable

# Tokens that must have occurred before: with one, too many guesses are wrong; with three, too few are made.
NGRAM_SIZE = 2


class NgramIndex:
    """A growing text with an index of where each of its n-grams occurred last."""

    def __init__(self, tokens: Iterable[int]):
        self.tokens: list[int] = []
        self.after: dict[tuple[int, ...], int] = {}  # n-gram -> index of the token that followed it
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        if len(self.tokens) >= NGRAM_SIZE:
            self.after[tuple(self.tokens[-NGRAM_SIZE:])] = len(self.tokens)
        self.tokens.append(token)

    def guess(self, count: int) -> list[int]:
        """Guess `count` tokens that may come next, or none.

        A guess that reaches the end of the text starts over, as if the text repeated itself: `a b c a b c a`.
        """
        start = self.after.get(tuple(self.tokens[-NGRAM_SIZE:]))
        if start is None:
            return []
        repeated = self.tokens[start : start + count]
        return [repeated[number % len(repeated)] for number in range(count)]
