"""Records to token ids: prompt and response apart, joined by the caller, so that the mask follows from their lengths."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from loratune.data.records import Record
from loratune.data.template import Template


@dataclass(frozen=True)
class Encoded:
    prompt: list[int]
    response: list[int]  # what is trained on; ends with end-of-text unless it was cut; empty for a row without a target
    id: str
    source: str


def encode_rows(
    records: Sequence[Record], template: Template, tokenizer, max_tokens: int
) -> tuple[list[Encoded], dict[str, dict[str, int]]]:
    """The rows that have a target, and for each source how many were shortened or dropped to fit in `max_tokens`.

    The input gives way first, from its end; then the response, from its end and then without end-of-text. A row whose
    prompt alone leaves no room for a target is dropped. `tokenizer` has `encode_batch`, `encode` and `eos_id`.
    """
    prompts = tokenizer.encode_batch([template.render(record.instruction, record.input) for record in records])
    responses = tokenizer.encode_batch([record.output for record in records])
    rows: list[Encoded] = []
    counts: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(("rows", "inputs_cut", "responses_cut", "dropped"), 0))
    for record, prompt, response in zip(records, prompts, responses, strict=True):
        count = counts[record.source]
        count["rows"] += 1
        row = Encoded(prompt, [*response, tokenizer.eos_id], record.id, record.source)
        if not record.has_target:
            row = replace(row, response=[])
        if over(row, max_tokens) > 0 and record.input:
            row = replace(row, prompt=shorter_prompt(record, row, template, tokenizer, max_tokens))
            count["inputs_cut"] += 1
        if len(row.prompt) >= max_tokens:
            count["dropped"] += 1
            continue
        if over(row, max_tokens) > 0:
            row = replace(row, response=row.response[: max_tokens - len(row.prompt)])
            count["responses_cut"] += 1
        rows.append(row)
    return rows, dict(counts)


def with_template(
    records: Sequence[Record], rows: Sequence[Encoded], template: Template, tokenizer, max_tokens: int
) -> list[Encoded]:
    """The same rows with prompts of another template; the responses, cut or not, stay as they are.

    Again the input gives way first; should that not be enough, the prompt loses its first tokens.
    """
    prompts = tokenizer.encode_batch([template.render(record.instruction, record.input) for record in records])
    others = []
    for record, row, prompt in zip(records, rows, prompts, strict=True):
        other = replace(row, prompt=prompt)
        if over(other, max_tokens) > 0 and record.input:
            other = replace(other, prompt=shorter_prompt(record, other, template, tokenizer, max_tokens))
        others.append(replace(other, prompt=other.prompt[max(over(other, max_tokens), 0) :]))
    return others


def over(row: Encoded, max_tokens: int) -> int:
    return len(row.prompt) + len(row.response) - max_tokens


def shorter_prompt(record: Record, row: Encoded, template: Template, tokenizer, max_tokens: int) -> list[int]:
    """The prompt with as many of the input's first tokens as fit; without any, if even those are too many.

    The shortened text is tokenised anew, because tokens at its borders may join differently: hence the loop.
    """
    tokens = tokenizer.encode(record.input)
    keep, prompt = len(tokens), row.prompt
    while keep > 0 and (excess := len(prompt) + len(row.response) - max_tokens) > 0:
        keep = max(keep - excess, 0)
        prompt = tokenizer.encode(template.render(record.instruction, tokenizer.decode(tokens[:keep]).strip()))
    return prompt
