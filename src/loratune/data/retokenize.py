"""Give tokenised examples the prompts of another template."""

from collections.abc import Sequence
from dataclasses import replace

from loratune.data.conversation import drop_oldest_turns, list_learned, list_turn_starts
from loratune.data.example import Example, Record
from loratune.data.template import PromptTemplate
from loratune.data.truncation import count_excess_tokens, shorten_prompt


def retokenize_prompts(
    records: Sequence[Record],
    examples: Sequence[Example],
    template: PromptTemplate,
    *,
    tokenizer,
    max_tokens: int,
) -> list[Example]:
    """Give examples the prompts of another template; their responses, cut or not, stay as they are.

    Where a row is too long, the input is shortened first, or a conversation loses its oldest turns; if that
    is not enough, the prompt loses its first tokens after BOS. Plain text has no prompt to replace.
    """
    prompts = tokenizer.encode_prompts([split_record_prompt(record, template) for record in records])
    bos_length = len(tokenizer.bos)
    others = []
    for record, row, prompt in zip(records, examples, prompts, strict=True):
        if record.is_text:
            others.append(row)
            continue
        other = replace(row, prompt=prompt)
        if count_excess_tokens(other, max_tokens) > 0:
            other = shorten_example(record, other, template, tokenizer=tokenizer, max_tokens=max_tokens)
        excess = max(count_excess_tokens(other, max_tokens), 0)
        others.append(replace(other, prompt=other.prompt[:bos_length] + other.prompt[bos_length + excess :]))
    return others


def shorten_example(
    record: Record, example: Example, template: PromptTemplate, *, tokenizer, max_tokens: int
) -> Example:
    """Shorten a prompt that is too long: by the oldest turns of a conversation, or the end of the input."""
    if record.messages:
        messages = record.messages[: list_learned(record.messages)[-1]]
        for count in range(1, len(list_turn_starts(messages))):
            parts = template.split_conversation(drop_oldest_turns(messages, count), record.tools)
            example = replace(example, prompt=tokenizer.encode_prompts([parts])[0])
            if count_excess_tokens(example, max_tokens) <= 0:
                break
    elif record.input:
        prompt, _ = shorten_prompt(record, example, template, tokenizer=tokenizer, max_tokens=max_tokens)
        example = replace(example, prompt=prompt)
    return example


def split_record_prompt(record: Record, template: PromptTemplate) -> Sequence[str]:
    """Split the prompt of a record's last learned answer, as `PromptTemplate.split_prompt` does."""
    if record.is_text:
        return ("",)
    if record.messages:
        return template.split_conversation(record.messages[: list_learned(record.messages)[-1]], record.tools)
    return template.split_prompt(record.instruction, record.input)
