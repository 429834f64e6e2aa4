"""Truncated rows: what the token limit removes from each row, by tokenising with and without it."""

from collections.abc import Sequence
from dataclasses import dataclass

from loratune.data.example import Example, Record
from loratune.data.template import PromptTemplate
from loratune.data.tokenize import tokenize_each
from loratune.data.tokenized import TokenizedExample

SEARCH_CHUNK = 256  # records


@dataclass(frozen=True)
class Truncation:
    """One example of a row without a token limit, and as it is truncated."""

    record: Record
    tokenized: TokenizedExample

    @property
    def untruncated(self) -> Example:
        """The example without a limit; its response is empty where the output is only an end marker."""
        return self.tokenized.untruncated

    @property
    def example(self) -> Example | None:
        """The example as the model sees it; None where it is dropped."""
        return self.tokenized.example

    @property
    def response_tokens_cut(self) -> int:
        """The number of response tokens that were left out at its end, end-of-text included."""
        return self.tokenized.response_tokens_cut if self.example else len(self.untruncated.response)

    @property
    def input_tokens_cut(self) -> int:
        """The number of tokens of the input, or of a conversation's oldest turns, that were left out."""
        if not self.example:
            return 0
        return count_tokens(self.untruncated) - count_tokens(self.example) - self.response_tokens_cut

    @property
    def input_cut_position(self) -> int:
        """The index in prompt and response where input tokens were left out; without any, the prompt's end.

        Up to there both are equal.
        """
        if not self.example:
            return len(self.untruncated.prompt)
        if not self.input_tokens_cut:
            return len(self.example.prompt)
        ids = self.example.prompt + self.example.response
        pairs = zip(ids, self.untruncated.prompt + self.untruncated.response, strict=False)
        return next((index for index, (one, other) in enumerate(pairs) if one != other), len(ids))

    @property
    def is_truncated(self) -> bool:
        return bool(self.example is None or self.input_tokens_cut or self.response_tokens_cut)


def count_tokens(example: Example) -> int:
    return len(example.prompt) + len(example.response)


def compute_truncations(
    records: Sequence[Record], template: PromptTemplate, tokenizer, *, max_tokens: int, learn: str = "all"
) -> list[Truncation]:
    """Tokenise records as in training, and return the truncation of each example, in their order."""
    rows = tokenize_each(records, template, tokenizer, max_tokens=max_tokens, learn=learn)
    return [Truncation(row.record, example) for row in rows for example in row.examples]


def find_truncated(
    records: Sequence[Record],
    count: int,
    template: PromptTemplate,
    *,
    tokenizer,
    max_tokens: int,
    learn: str = "all",
) -> list[Truncation]:
    """Return the first `count` examples, or fewer, that are shortened or dropped."""
    truncated: list[Truncation] = []
    for start in range(0, len(records), SEARCH_CHUNK):
        if len(truncated) >= count:
            break
        some = records[start : start + SEARCH_CHUNK]
        rows = compute_truncations(some, template, tokenizer, max_tokens=max_tokens, learn=learn)
        truncated += [row for row in rows if row.is_truncated]
    return truncated[:count]
