"""Tokenise records: single turns, conversations and plain text, as far as they fit."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from loratune.data.chat_template import ChatTemplate
from loratune.data.end_markers import list_end_markers, strip_end_markers
from loratune.data.example import Example, Record
from loratune.data.template import PromptTemplate, Template
from loratune.data.tokenize_chats import tokenize_chats
from loratune.data.tokenize_turns import tokenize_turns
from loratune.data.tokenized import COUNT_NAMES, TokenizedExample, TokenizedRecord
from loratune.system.messages import progress

CHUNK_ROWS = 1024  # rows between two moves of the progress bar


def tokenize_records(
    records: Sequence[Record], template: PromptTemplate, tokenizer, *, max_tokens: int, learn: str = "all"
) -> tuple[list[Example], dict[str, dict[str, int]]]:
    """Tokenise records and truncate them to `max_tokens`.

    Of a single turn first the input is shortened, at its end; a conversation loses its oldest turns, as many
    as needed. Then the response is cut at its end, and loses end-of-text. A row is dropped if its prompt
    leaves no room for a target, or if its output is only an end marker. Plain text is split into several
    examples, and nothing of it is lost.

    Args:
        records: the rows.
        template: the prompt template.
        tokenizer: a tokenizer of `models.tokenizer`, as `fit_tokenizer` returns it for the template.
        max_tokens: the most tokens of prompt and response together.
        learn: which answers of a conversation are learned, all or last.

    Returns:
        The examples that were not dropped, and for each source its counts by `COUNT_NAMES`.

    Raises:
        UserError: the template cannot show a conversation; the record is named.
    """
    examples: list[Example] = []
    counts: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(COUNT_NAMES, 0))
    for row in tokenize_each(records, template, tokenizer, max_tokens=max_tokens, learn=learn):
        examples += [one.example for one in row.examples if one.example]
        total = counts[row.record.source]
        for name, number in row.count().items():
            total[name] += number
    return examples, dict(counts)


def tokenize_with_progress(
    records: Sequence[Record], template: PromptTemplate, tokenizer, *, max_tokens: int, learn: str
) -> tuple[list[Example], dict[str, dict[str, int]]]:
    """Tokenise records as `tokenize_records` does, and show the progress."""
    examples: list[Example] = []
    counts: dict[str, Counter[str]] = {record.source: Counter() for record in records}
    with progress("tokens of the rows", len(records)) as advance:
        for start in range(0, len(records), CHUNK_ROWS):
            chunk = records[start : start + CHUNK_ROWS]
            encoded, of_chunk = tokenize_records(
                chunk, template, tokenizer, max_tokens=max_tokens, learn=learn
            )
            examples += encoded
            for source, count in of_chunk.items():
                counts[source].update(count)
            advance(len(chunk))
    return examples, {source: dict(count) for source, count in counts.items()}


def tokenize_each(
    records: Sequence[Record], template: PromptTemplate, tokenizer, *, max_tokens: int, learn: str = "all"
) -> list[TokenizedRecord]:
    """Tokenise records as `tokenize_records` does, and return what became of each, in their order."""
    texts = iter(tokenize_texts([one for one in records if one.is_text], tokenizer, max_tokens=max_tokens))
    others = [one for one in records if not one.is_text]
    if isinstance(template, ChatTemplate):
        rows = iter(tokenize_chats(others, template, tokenizer, max_tokens=max_tokens, learn=learn))
    elif isinstance(template, Template):
        rows = iter(tokenize_turns(others, template, tokenizer, max_tokens=max_tokens, learn=learn))
    else:
        raise TypeError(f"a Template or a ChatTemplate is needed, not {type(template).__name__}")
    return [next(texts if record.is_text else rows) for record in records]


def tokenize_texts(records: Sequence[Record], tokenizer, *, max_tokens: int) -> list[TokenizedRecord]:
    """Tokenise plain texts: each with BOS, where the model has one, and end-of-text.

    A long text becomes several examples. The last token of one is the prompt of the next, so that every token
    but the first is learned exactly once.
    """
    markers = list_end_markers(tokenizer)
    texts = [strip_end_markers(record.output, markers) for record in records]
    rows = []
    for record, text, ids in zip(records, texts, tokenizer.encode_batch(texts), strict=True):
        prompt, rest = list(tokenizer.text_bos), [*ids, tokenizer.text_eos_id]
        examples = []
        while rest and text.strip():
            room = max_tokens - len(prompt)
            example = Example(prompt, rest[:room], record.id, record.source)
            examples.append(TokenizedExample(example, example))
            prompt, rest = rest[room - 1 : room], rest[room:]
        if not examples:
            examples.append(TokenizedExample(Example(prompt, [], record.id, record.source), None))
        rows.append(TokenizedRecord(record, examples, end_markers=text != record.output))
    return rows
