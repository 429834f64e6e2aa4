"""What the limit on length took from a row: seen by encoding it with the limit and without."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from loratune.data.example import Example, Record
from loratune.data.template import Template
from loratune.data.tokenize import tokenize_records, tokenize_without_limit

SEARCH_CHUNK = 256  # records


@dataclass(frozen=True)
class Truncation:
    record: Record
    # As it would be if there were room for everything; no response: the output is but an end marker.
    whole: Example
    kept: Example | None  # as the model sees it; None: dropped

    @property
    def input_tokens_cut(self) -> int:
        """Tokens of the input that were left out."""
        return len(self.whole.prompt) - len(self.kept.prompt) if self.kept else 0

    @property
    def input_cut_position(self) -> int:
        """The place in the kept prompt where they were: before it, it is the whole prompt's beginning."""
        kept = self.kept.prompt if self.kept else self.whole.prompt
        return next(
            (
                place
                for place, pair in enumerate(zip(kept, self.whole.prompt, strict=False))
                if pair[0] != pair[1]
            ),
            len(kept),
        )

    @property
    def response_tokens_cut(self) -> int:
        """Tokens of the response that were left out; the last one is end-of-text."""
        return len(self.whole.response) - len(self.kept.response) if self.kept else len(self.whole.response)

    @property
    def is_truncated(self) -> bool:
        return bool(self.kept is None or self.input_tokens_cut or self.response_tokens_cut)


def compute_truncations(
    records: Sequence[Record], template: Template, tokenizer, max_tokens: int
) -> list[Truncation]:
    """The records in their order, as training encodes them."""
    numbered = [replace(record, id=str(number)) for number, record in enumerate(records)]
    whole = tokenize_without_limit(numbered, template, tokenizer)
    kept = {row.id: row for row in tokenize_records(numbered, template, tokenizer, max_tokens)[0]}
    return [Truncation(record, row, kept.get(row.id)) for record, row in zip(records, whole, strict=True)]


def find_truncated(
    records: Sequence[Record], count: int, template: Template, tokenizer, max_tokens: int
) -> list[Truncation]:
    """The first `count` records, or fewer, that were shortened or dropped."""
    found: list[Truncation] = []
    for start in range(0, len(records), SEARCH_CHUNK):
        if len(found) >= count:
            break
        found += [
            row
            for row in compute_truncations(
                records[start : start + SEARCH_CHUNK], template, tokenizer, max_tokens
            )
            if row.is_truncated
        ]
    return found[:count]
