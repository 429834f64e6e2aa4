"""What gives way where a row is too long: a chat's oldest turns, else the input's last tokens."""

from bisect import bisect_left
from itertools import pairwise

from loratune.data.example import Example, Record
from loratune.data.template import Template

TURN_STARTS = "turn_starts"  # in a record's meta: where in the input each turn begins, in characters
SYSTEM_PREFIX = "System: "  # begins the turn that stays


def split_turns(record: Record) -> list[str]:
    """The turns in a record's input, each with its line end; none where the input is no chat, or was changed
    since.
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
    """The input without its oldest turn, without its two oldest ones, and so on; a system message at its
    beginning stays.
    """
    turns = split_turns(record)
    kept = 1 if turns and turns[0].startswith(SYSTEM_PREFIX) else 0
    return [
        "".join(turns[:kept] + turns[first:]).removesuffix("\n") for first in range(kept + 1, len(turns) + 1)
    ]


def count_excess_tokens(example: Example, max_tokens: int) -> int:
    return len(example.prompt) + len(example.response) - max_tokens


def shorten_prompt(
    record: Record, example: Example, template: Template, tokenizer, max_tokens: int
) -> tuple[list[int], int]:
    """The prompt with as much of the input as fits, and how many turns of a chat gave way.

    Of a chat the oldest turns go, as many as needed. Of any other input, and of what then is still too long,
    the last tokens go, all of them if even those are too many. The shortened text is tokenised again, because
    tokens at its borders may join differently: hence the loop.
    """

    def prompt_with(text: str) -> list[int]:
        return tokenizer.encode_prompts([template.parts(record.instruction, text)])[0]

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
