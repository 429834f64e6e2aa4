"""Truncation of examples that are too long: the input or a chat's oldest turns first, then the response."""

from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

from loratune.data.example import Example, Record
from loratune.data.template import PromptTemplate
from loratune.data.tokenized import TokenizedExample
from loratune.errors import UserError

TURN_STARTS = "turn_starts"  # in a record's meta: the index of each turn's first character in the input
SYSTEM_PREFIX = "System: "  # of the turn that is never removed


def split_turns(record: Record) -> list[str]:
    """Split a chat's input into its turns, each with its line end.

    Returns:
        The turns; none where the input is no chat, or was changed since its turns were recorded.
    """
    starts = record.meta.get(TURN_STARTS)
    if not isinstance(starts, list) or not starts or not all(type(start) is int for start in starts):
        return []
    ends = [*starts[1:], len(record.input)]
    is_ordered = starts[0] == 0 and all(start < end for start, end in zip(starts, ends, strict=True))
    if not is_ordered or any(record.input[start - 1] != "\n" for start in starts[1:]):
        return []
    return [record.input[start:end] for start, end in pairwise([*starts, len(record.input)])]


def list_shortened_inputs(record: Record) -> list[str]:
    """List a chat's input without its oldest turn, without its two oldest, and so on.

    A system message at its beginning stays.
    """
    turns = split_turns(record)
    first_removable = 1 if turns and turns[0].startswith(SYSTEM_PREFIX) else 0
    return [
        "".join(turns[:first_removable] + turns[start:]).removesuffix("\n")
        for start in range(first_removable + 1, len(turns) + 1)
    ]


def count_excess_tokens(example: Example, max_tokens: int) -> int:
    return len(example.prompt) + len(example.response) - max_tokens


def shorten_prompt(
    record: Record, example: Example, template: PromptTemplate, *, tokenizer, max_tokens: int
) -> tuple[list[int], int]:
    """Build the prompt with as much of the input as fits.

    A chat loses its oldest turns, as many as needed. Any other input, and a chat that is still too long,
    loses its last tokens, if need be all of them. This is repeated until the prompt fits, because the
    shortened text is tokenised again, and tokens at its end may merge differently.

    Returns:
        The prompt's token ids, and the number of turns that were removed.
    """

    def prompt_with(text: str) -> list[int]:
        return tokenizer.encode_prompts([template.split_prompt(record.instruction, text)])[0]

    def excess_of(prompt: list[int]) -> int:
        return len(prompt) + len(example.response) - max_tokens

    inputs = list_shortened_inputs(record)
    turns = bisect_left(inputs, True, key=lambda text: excess_of(prompt_with(text)) <= 0) + 1
    turns = min(turns, len(inputs))
    text = inputs[turns - 1] if inputs else record.input
    tokens = tokenizer.encode(text)
    keep, prompt = len(tokens), prompt_with(text) if inputs else example.prompt
    while keep > 0 and (excess := excess_of(prompt)) > 0:
        keep = max(keep - excess, 0)
        prompt = prompt_with(tokenizer.decode(tokens[:keep]).strip())
    return prompt, turns


def truncate_turn(
    record: Record, example: Example, template: PromptTemplate, *, tokenizer, max_tokens: int
) -> TokenizedExample:
    """Truncate an example of one turn: first the input, then the end of the response."""
    if not example.response and record.has_target:
        return TokenizedExample(example, None)
    shorter, turns = example, 0
    is_input_cut = count_excess_tokens(example, max_tokens) > 0 and bool(record.input)
    if is_input_cut:
        prompt, turns = shorten_prompt(record, example, template, tokenizer=tokenizer, max_tokens=max_tokens)
        shorter = replace(example, prompt=prompt)
    truncated = cut_end(shorter, max_tokens)
    return TokenizedExample(
        example,
        truncated,
        input_cut=is_input_cut,
        turns_cut=turns,
        response_tokens_cut=len(shorter.response) - len(truncated.response) if truncated else 0,
    )


def cut_end(example: Example, max_tokens: int) -> Example | None:
    """Cut the end of a response that is too long; None where the prompt leaves no room for a target."""
    room = max_tokens - len(example.prompt)
    if room <= 0:
        return None
    if len(example.response) <= room:
        return example
    context = tuple((start, stop) for start, stop in example.context if start < room)
    if context and context[-1][1] >= room:  # the end of what is left is not learned
        room = context[-1][0]
        context = context[:-1]
    return replace(example, response=example.response[:room], context=context)


@contextmanager
def naming_record(record: Record) -> Iterator[None]:
    """Name the record in what is wrong with it."""
    try:
        yield
    except UserError as error:
        where = f"row {record.id} of {record.source}"
        raise UserError(*(replace(problem, where=where) for problem in error.details)) from error
