"""How long reading rows and writing answers will take, from timing a small piece of it on this machine."""

import math
import time
from collections.abc import Callable, Sequence

from loratune.config.shared import DecodingConfig
from loratune.data.example import Example
from loratune.data.packing import input_length
from loratune.evaluation.likelihood import response_nll
from loratune.generation.cache import choose_slot_count
from loratune.generation.engine import generate

TIMED_TOKENS = 512  # tokens that are read
TIMED_STEPS = 4
PROMPT_TOKENS = 8  # tokens of each prompt before these steps: how long it is hardly matters to them
NO_END_IDS = frozenset()  # answers that never end


def estimate_reading_seconds(decoder, examples: Sequence[Example]) -> float:
    """What `response_nll` takes for the rows; those without a target are not read."""
    examples = [row for row in examples if row.response]
    if not examples:
        return 0.0
    tokens = sum(map(input_length, examples))
    some = pick_evenly(examples, round(TIMED_TOKENS / max(tokens, 1) * len(examples)))
    response_nll(decoder, some[:1])  # warms up
    return (
        measure_seconds(lambda: response_nll(decoder, some)) * tokens / max(sum(map(input_length, some)), 1)
    )


def estimate_answering_seconds(
    decoder, prompts: Sequence[list[int]], decoding: DecodingConfig, samples: int = 1
) -> float:
    """What `generate` takes for the prompts if each answer becomes as long as it may."""
    if not prompts:
        return 0.0
    capacity = min(max(map(len, prompts)) + decoding.max_new_tokens, decoder.spec.max_positions)
    answers = samples * len(prompts)
    slots = choose_slot_count(decoder, min(decoding.batch_size, answers), capacity)
    # All different: equal ones would be read once.
    chosen = enumerate(pick_evenly(list(prompts) * samples, slots))
    some = [[number % decoder.spec.vocab_size, *prompt[1 - PROMPT_TOKENS :]] for number, prompt in chosen]
    first, more = (
        measure_seconds(lambda most=most: generate_up_to(decoder, some, most, decoding))
        for most in (1, 1 + TIMED_STEPS)
    )
    steps = math.ceil(answers / slots) * (decoding.max_new_tokens - 1)
    reading = estimate_reading_seconds(decoder, [Example(prompt, prompt[-1:], "", "") for prompt in prompts])
    # Of a tiny model the first call may take longer.
    return reading + steps * max(more - first, 0.0) / TIMED_STEPS


def generate_up_to(decoder, prompts: list[list[int]], max_new_tokens: int, decoding: DecodingConfig) -> None:
    generate(decoder, prompts, NO_END_IDS, decoding.model_copy(update={"max_new_tokens": max_new_tokens}))


def pick_evenly(items: Sequence, count: int) -> list:
    """`count` of the items (at least one, at most all), at equal distances."""
    count = max(min(count, len(items)), 1)
    return [items[number * len(items) // count] for number in range(count)]


def measure_seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
