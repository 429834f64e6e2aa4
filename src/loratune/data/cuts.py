"""What the limit on length took from a row: seen by encoding it with the limit and without."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from loratune.data.example import Encoded, Record
from loratune.data.template import Template
from loratune.data.tokenize import encode_rows, encode_whole

SEARCHED_AT_ONCE = 256  # records


@dataclass(frozen=True)
class Fitted:
    record: Record
    whole: Encoded  # as it would be if there were room for everything; no response: the output is but an end marker
    kept: Encoded | None  # as the model sees it; None: dropped

    @property
    def input_cut(self) -> int:
        """Tokens of the input that were left out."""
        return len(self.whole.prompt) - len(self.kept.prompt) if self.kept else 0

    @property
    def input_cut_at(self) -> int:
        """The place in the kept prompt where they were: before it, it is the whole prompt's beginning."""
        kept = self.kept.prompt if self.kept else self.whole.prompt
        return next(
            (place for place, pair in enumerate(zip(kept, self.whole.prompt, strict=False)) if pair[0] != pair[1]), len(kept)
        )

    @property
    def response_cut(self) -> int:
        """Tokens of the response that were left out; the last one is end-of-text."""
        return len(self.whole.response) - len(self.kept.response) if self.kept else len(self.whole.response)

    @property
    def is_cut(self) -> bool:
        return bool(self.kept is None or self.input_cut or self.response_cut)


def fitted(records: Sequence[Record], template: Template, tokenizer, max_tokens: int) -> list[Fitted]:
    """The records in their order, as training encodes them."""
    numbered = [replace(record, id=str(number)) for number, record in enumerate(records)]
    whole = encode_whole(numbered, template, tokenizer)
    kept = {row.id: row for row in encode_rows(numbered, template, tokenizer, max_tokens)[0]}
    return [Fitted(record, row, kept.get(row.id)) for record, row in zip(records, whole, strict=True)]


def first_cut(records: Sequence[Record], count: int, template: Template, tokenizer, max_tokens: int) -> list[Fitted]:
    """The first `count` records, or fewer, that were shortened or dropped."""
    found: list[Fitted] = []
    for start in range(0, len(records), SEARCHED_AT_ONCE):
        if len(found) >= count:
            break
        found += [row for row in fitted(records[start : start + SEARCHED_AT_ONCE], template, tokenizer, max_tokens) if row.is_cut]
    return found[:count]
