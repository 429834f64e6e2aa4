"""Guess the next tokens of a text from what followed its last tokens before: prompt lookup decoding (Saxena
2023).

Answers quote their prompts and repeat themselves. A guess costs nothing but its tokens' places in a call that
reads all the weights anyway, and it is only a guess: the model's own choice at each of its tokens decides.
"""

from collections.abc import Iterable

NGRAM_SIZE = (
    2  # tokens that must have stood before: one would make too many wrong guesses, three too few right ones
)


class NgramIndex:
    """A growing text that knows where each of its clues stood last."""

    def __init__(self, tokens: Iterable[int]):
        self.tokens: list[int] = []
        self.after: dict[tuple[int, ...], int] = {}  # from a clue to the place of what followed it
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        if len(self.tokens) >= NGRAM_SIZE:
            self.after[tuple(self.tokens[-NGRAM_SIZE:])] = len(self.tokens)
        self.tokens.append(token)

    def guess(self, count: int) -> list[int]:
        """`count` tokens that may come next, or none.

        Where they would reach the end of the text they begin again: it is taken to go round, as `a b c a b c
        a` does.
        """
        place = self.after.get(tuple(self.tokens[-NGRAM_SIZE:]))
        if place is None:
            return []
        round_ = self.tokens[place : place + count]
        return [round_[number % len(round_)] for number in range(count)]
