"""Tokenise single turns in a text template: prompt and response apart, so that the mask follows from lengths.

A conversation becomes one example for each learned answer, with the turns before it as the prompt's input,
because such a template has no form for turns.
"""

from collections.abc import Sequence
from dataclasses import replace

from loratune.data.conversation import format_content, list_learned, view_as_turn
from loratune.data.end_markers import list_end_markers, strip_end_markers
from loratune.data.example import Example, Record
from loratune.data.template import Template
from loratune.data.tokenized import TokenizedRecord
from loratune.data.truncation import TURN_STARTS, naming_record, truncate_turn


def tokenize_turns(
    records: Sequence[Record], template: Template, tokenizer, *, max_tokens: int, learn: str
) -> list[TokenizedRecord]:
    """Tokenise records as `tokenize_records` does, and return what became of each, in their order."""
    markers = list_end_markers(tokenizer)
    turns_of = [list_turns(record, template, learn) for record in records]
    turns = [turn for of_record in turns_of for turn in of_record]
    encoded = iter(zip(turns, encode_turns(turns, template, tokenizer), strict=True))
    rows = []
    for record, of_record in zip(records, turns_of, strict=True):
        examples = [
            truncate_turn(turn, example, template, tokenizer=tokenizer, max_tokens=max_tokens)
            for turn, example in (next(encoded) for _ in of_record)
        ]
        answers = len(of_record) if record.messages else 0
        end_markers = any(strip_end_markers(turn.output, markers) != turn.output for turn in of_record)
        rows.append(TokenizedRecord(record, examples, answers, end_markers))
    return rows


def list_turns(record: Record, template: Template, learn: str) -> list[Record]:
    """Return a record as records of one turn, one for each answer that is learned."""
    if not record.messages:
        return [record]
    with naming_record(record):
        template.check(record.messages, record.tools)
    turns = []
    for number in list_learned(record.messages, learn):
        turn = view_as_turn(record.messages[:number])
        turns.append(
            replace(
                record,
                instruction=turn.instruction,
                input=turn.input,
                output=format_content(record.messages[number]),
                meta=record.meta | {TURN_STARTS: turn.turn_starts},
                messages=(),
            )
        )
    return turns


def encode_turns(records: Sequence[Record], template: Template, tokenizer) -> list[Example]:
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
