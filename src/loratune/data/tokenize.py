"""Tokenise records: prompt and response separately, so that the loss mask follows from their lengths."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from loratune.data.example import Example, Record
from loratune.data.template import Template
from loratune.data.truncation import count_excess_tokens, shorten_prompt

# End markers of all model families, which data sets made for one of them hold as text. </s> is not among
# them, because it is HTML, too.
END_MARKERS = (
    "<|endoftext|>",
    "<|im_end|>",
    "<|end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|end_of_text|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<|return|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<|END_OF_TURN_TOKEN|>",
)
COUNT_NAMES = ("rows", "inputs_cut", "turns_cut", "responses_cut", "dropped", "end_markers_removed")


def tokenize_records(
    records: Sequence[Record], template: Template, tokenizer, *, max_tokens: int
) -> tuple[list[Example], dict[str, dict[str, int]]]:
    """Tokenise records and truncate them to `max_tokens`.

    First the input is shortened: at its end or, in a chat, by its oldest turns. Then the response is cut at
    its end, and loses end-of-text. A row is dropped if its prompt leaves no room for a target, or if its
    output is only an end marker.

    Args:
        records: the rows.
        template: the prompt template.
        tokenizer: a tokenizer of `models.tokenizer`.
        max_tokens: the most tokens of prompt and response together.

    Returns:
        The examples that were not dropped, and for each source its counts by `COUNT_NAMES`: of rows, but
        `turns_cut` counts turns of chats.
    """
    markers = list_end_markers(tokenizer)
    rows: list[Example] = []
    counts: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(COUNT_NAMES, 0))
    for record, row in zip(records, tokenize_without_limit(records, template, tokenizer), strict=True):
        count = counts[record.source]
        count["rows"] += 1
        count["end_markers_removed"] += strip_end_markers(record.output, markers) != record.output
        if not row.response and record.has_target:
            count["dropped"] += 1
            continue
        if count_excess_tokens(row, max_tokens) > 0 and record.input:
            prompt, turns = shorten_prompt(record, row, template, tokenizer=tokenizer, max_tokens=max_tokens)
            row = replace(row, prompt=prompt)
            count["inputs_cut"] += 1
            count["turns_cut"] += turns
        if len(row.prompt) >= max_tokens:
            count["dropped"] += 1
            continue
        if count_excess_tokens(row, max_tokens) > 0:
            row = replace(row, response=row.response[: max_tokens - len(row.prompt)])
            count["responses_cut"] += 1
        rows.append(row)
    return rows, dict(counts)


def tokenize_without_limit(records: Sequence[Record], template: Template, tokenizer) -> list[Example]:
    """Tokenise without truncation; the response is empty where the output is only an end marker."""
    markers = list_end_markers(tokenizer)
    outputs = [strip_end_markers(record.output, markers) for record in records]
    prompts = tokenizer.encode_prompts(
        [template.split_prompt(record.instruction, record.input) for record in records]
    )
    responses = tokenizer.encode_batch(outputs)
    rows = []
    for record, prompt, output, response in zip(records, prompts, outputs, responses, strict=True):
        row = Example(prompt, [*response, tokenizer.eos_id], record.id, record.source)
        is_only_marker = output != record.output and not output.strip()
        rows.append(replace(row, response=[]) if is_only_marker or not record.has_target else row)
    return rows


def list_end_markers(tokenizer) -> tuple[str, ...]:
    """List the end markers that are removed from outputs, the longest first.

    Training adds the tokenizer's end-of-text to every output, so one that the text holds would be a second.
    """
    return tuple(sorted({*END_MARKERS, *tokenizer.end_texts}, key=lambda marker: (-len(marker), marker)))


def strip_end_markers(output: str, markers: tuple[str, ...]) -> str:
    """Remove the markers at the end of an output, and the white space after them."""
    while (text := output.rstrip()).endswith(markers):
        output = text.removesuffix(next(marker for marker in markers if text.endswith(marker)))
    return output


def describe_end_markers(count: Mapping[str, int]) -> str:
    """Say what became of the end markers of one source's outputs; "" where there were none."""
    if not (number := count.get("end_markers_removed", 0)):
        return ""
    outputs = "output ends" if number == 1 else "outputs end"
    return (
        f"{number:,} {outputs} with an end marker such as <|endoftext|>; it is taken off, since every "
        "response gets its end anyway"
    )


def retokenize_prompts(
    records: Sequence[Record], examples: Sequence[Example], template: Template, *, tokenizer, max_tokens: int
) -> list[Example]:
    """Give examples the prompts of another template; their responses, cut or not, stay as they are.

    Where a row is too long the input is shortened first; if that is not enough, the prompt loses its first
    tokens after BOS.
    """
    prompts = tokenizer.encode_prompts(
        [template.split_prompt(record.instruction, record.input) for record in records]
    )
    bos_length = len(tokenizer.bos)
    others = []
    for record, row, prompt in zip(records, examples, prompts, strict=True):
        other = replace(row, prompt=prompt)
        if count_excess_tokens(other, max_tokens) > 0 and record.input:
            other = replace(
                other,
                prompt=shorten_prompt(record, other, template, tokenizer=tokenizer, max_tokens=max_tokens)[0],
            )
        excess = max(count_excess_tokens(other, max_tokens), 0)
        others.append(replace(other, prompt=other.prompt[:bos_length] + other.prompt[bos_length + excess :]))
    return others
