"""Truncated rows: what the token limit removes from each row, by tokenising with and without it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from loratune.data.example import Example, Record
from loratune.data.template import Template
from loratune.data.tokenize import tokenize_records, tokenize_without_limit

SEARCH_CHUNK = 256  # records


@dataclass(frozen=True)
class Truncation:
    """A row without a token limit, and as it is truncated."""

    record: Record
    untruncated: Example  # without a limit; its response is empty where the output is only an end marker
    example: Example | None  # as the model sees it; None where the row is dropped

    @property
    def input_tokens_cut(self) -> int:
        """The number of input tokens that were left out."""
        return len(self.untruncated.prompt) - len(self.example.prompt) if self.example else 0

    @property
    def input_cut_position(self) -> int:
        """The index in the prompt where input tokens were left out: up to there both prompts are equal."""
        prompt = self.example.prompt if self.example else self.untruncated.prompt
        pairs = zip(prompt, self.untruncated.prompt, strict=False)
        return next((index for index, (one, other) in enumerate(pairs) if one != other), len(prompt))

    @property
    def response_tokens_cut(self) -> int:
        """The number of response tokens that were left out, end-of-text included."""
        return (
            len(self.untruncated.response) - len(self.example.response)
            if self.example
            else len(self.untruncated.response)
        )

    @property
    def is_truncated(self) -> bool:
        return bool(self.example is None or self.input_tokens_cut or self.response_tokens_cut)


def compute_truncations(
    records: Sequence[Record], template: Template, tokenizer, *, max_tokens: int
) -> list[Truncation]:
    """Tokenise records as in training, and return the truncation of each, in their order."""
    numbered = [replace(record, id=str(number)) for number, record in enumerate(records)]
    untruncated = tokenize_without_limit(numbered, template, tokenizer)
    by_id = {row.id: row for row in tokenize_records(numbered, template, tokenizer, max_tokens=max_tokens)[0]}
    return [
        Truncation(record, row, by_id.get(row.id)) for record, row in zip(records, untruncated, strict=True)
    ]


def find_truncated(
    records: Sequence[Record], count: int, template: Template, *, tokenizer, max_tokens: int
) -> list[Truncation]:
    """Return the first `count` records, or fewer, that are shortened or dropped."""
    truncated: list[Truncation] = []
    for start in range(0, len(records), SEARCH_CHUNK):
        if len(truncated) >= count:
            break
        truncated += [
            row
            for row in compute_truncations(
                records[start : start + SEARCH_CHUNK], template, tokenizer, max_tokens=max_tokens
            )
            if row.is_truncated
        ]
    return truncated[:count]
