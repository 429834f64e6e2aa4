"""Records to token ids: prompt and response apart, joined by the caller, so that the mask follows from their
lengths.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from loratune.data.example import Example, Record
from loratune.data.template import Template
from loratune.data.truncation import count_excess_tokens, shorten_prompt

# The ends of answers of all families of models, as data sets made for one of them have them. Not </s>, which
# is HTML, too.
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
    records: Sequence[Record], template: Template, tokenizer, max_tokens: int
) -> tuple[list[Example], dict[str, dict[str, int]]]:
    """The rows that have a target, and for each source how many were shortened or dropped to fit in
    `max_tokens`.

    The input gives way first, from its end, or of a chat its oldest turns (`turns_cut` counts these, all else
    counts rows); then the response, from its end and then without end-of-text. A row whose prompt alone
    leaves no room for a target is dropped, as is one whose output is nothing but an end marker. `tokenizer`
    is one of `models.tokenizer`.
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
            prompt, turns = shorten_prompt(record, row, template, tokenizer, max_tokens)
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
    """All rows as they would be if there were room for everything; without a response where the output is but
    an end marker.
    """
    markers = list_end_markers(tokenizer)
    outputs = [strip_end_markers(record.output, markers) for record in records]
    prompts = tokenizer.encode_prompts(
        [template.parts(record.instruction, record.input) for record in records]
    )
    responses = tokenizer.encode_batch(outputs)
    rows = []
    for record, prompt, output, response in zip(records, prompts, outputs, responses, strict=True):
        row = Example(prompt, [*response, tokenizer.eos_id], record.id, record.source)
        nothing_left = output != record.output and not output.strip()
        rows.append(replace(row, response=[]) if nothing_left or not record.has_target else row)
    return rows


def list_end_markers(tokenizer) -> tuple[str, ...]:
    """What an output may end with by mistake, the longest first: training adds the tokenizer's own
    end-of-text to each.
    """
    return tuple(sorted({*END_MARKERS, *tokenizer.end_texts}, key=lambda marker: (-len(marker), marker)))


def strip_end_markers(output: str, markers: tuple[str, ...]) -> str:
    """The output without the markers at its end, and without the spaces after these; one inside the text
    stays.
    """
    while (text := output.rstrip()).endswith(markers):
        output = text.removesuffix(next(marker for marker in markers if text.endswith(marker)))
    return output


def retokenize_prompts(
    records: Sequence[Record], examples: Sequence[Example], template: Template, tokenizer, max_tokens: int
) -> list[Example]:
    """The same rows with prompts of another template; the responses, cut or not, stay as they are.

    Again the input gives way first; should that not be enough, the prompt loses its first tokens, but for
    BOS.
    """
    prompts = tokenizer.encode_prompts(
        [template.parts(record.instruction, record.input) for record in records]
    )
    kept = len(tokenizer.bos)
    others = []
    for record, row, prompt in zip(records, examples, prompts, strict=True):
        other = replace(row, prompt=prompt)
        if count_excess_tokens(other, max_tokens) > 0 and record.input:
            other = replace(other, prompt=shorten_prompt(record, other, template, tokenizer, max_tokens)[0])
        excess = max(count_excess_tokens(other, max_tokens), 0)
        others.append(replace(other, prompt=other.prompt[:kept] + other.prompt[kept + excess :]))
    return others
