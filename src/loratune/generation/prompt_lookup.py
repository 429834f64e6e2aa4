"""Guess the next tokens of a text from what followed its last tokens before: prompt lookup decoding (Saxena
2023).

Answers quote their prompts and repeat themselves. A guess only adds tokens to a call that reads all the
weights anyway, and it stays a guess: the model's own choice at each of its tokens decides.
"""

from collections.abc import Iterable

# Tokens that must have stood before: one would give too many wrong guesses, three too few right ones.
NGRAM_SIZE = 2


class NgramIndex:
    """A growing text that knows where each of its n-grams stood last."""

    def __init__(self, tokens: Iterable[int]):
        self.tokens: list[int] = []
        self.after: dict[tuple[int, ...], int] = {}  # n-gram -> place of the token that followed it
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        if len(self.tokens) >= NGRAM_SIZE:
            self.after[tuple(self.tokens[-NGRAM_SIZE:])] = len(self.tokens)
        self.tokens.append(token)

    def guess(self, count: int) -> list[int]:
        """Guess `count` tokens that may come next, or none.

        A guess that reaches the end of the text starts over: the text is taken to repeat itself, as `a b c a
        b c a` does.
        """
        place = self.after.get(tuple(self.tokens[-NGRAM_SIZE:]))
        if place is None:
            return []
        repeated = self.tokens[place : place + count]
        return [repeated[number % len(repeated)] for number in range(count)]
