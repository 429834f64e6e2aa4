"""Estimate how long an evaluation will take, by timing a small piece of it on this machine."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from loratune.data.example import Example
from loratune.data.packing import input_length
from loratune.evaluation.likelihood import response_nll
from loratune.evaluation.runner import AnswerSettings
from loratune.generation.cache import choose_slot_count
from loratune.generation.decoding import Decoding
from loratune.generation.engine import generate
from loratune.generation.request import build_requests
from loratune.models.decoder import Decoder

Item = TypeVar("Item")

TIMED_TOKENS = 512  # input tokens of the examples whose loss is timed
TIMED_STEPS = 4
PROMPT_TOKENS = 8  # tokens kept of each timed prompt: its length hardly changes the time of a decoding step
NO_END_IDS: frozenset[int] = frozenset()  # with them no answer stops before its limit


def estimate_reading_seconds(decoder: Decoder, examples: Sequence[Example]) -> float:
    """Estimate the seconds that `response_nll` takes; examples without a target take none."""
    examples = [example for example in examples if example.response]
    if not examples:
        return 0.0
    tokens = sum(map(input_length, examples))
    sample = pick_evenly(examples, round(TIMED_TOKENS / max(tokens, 1) * len(examples)))
    response_nll(decoder, sample[:1])  # warms up
    seconds = measure_seconds(lambda: response_nll(decoder, sample))
    return seconds * tokens / max(sum(map(input_length, sample)), 1)


def estimate_answering_seconds(
    decoder: Decoder, prompts: Sequence[list[int]], settings: AnswerSettings
) -> float:
    """Estimate the seconds that `generate` takes if every answer reaches its maximum length."""
    if not prompts:
        return 0.0
    decoding = settings.decoding
    capacity = min(max(map(len, prompts)) + decoding.max_new_tokens, decoder.spec.max_positions)
    answers = settings.samples * len(prompts)
    slots = choose_slot_count(decoder, min(settings.batch_size, answers), capacity)
    # The first token makes all prompts different: equal prompts would be prefilled only once.
    chosen = enumerate(pick_evenly(list(prompts) * settings.samples, slots))
    timed = [[number % decoder.spec.vocab_size, *prompt[1 - PROMPT_TOKENS :]] for number, prompt in chosen]
    one_step, more_steps = (
        measure_seconds(lambda count=count: generate_up_to(decoder, timed, count, decoding))
        for count in (1, 1 + TIMED_STEPS)
    )
    steps = math.ceil(answers / slots) * (decoding.max_new_tokens - 1)
    reading = estimate_reading_seconds(decoder, [Example(prompt, prompt[-1:], "", "") for prompt in prompts])
    # With a tiny model the call with fewer steps may take longer, so the difference is not below 0.
    return reading + steps * max(more_steps - one_step, 0.0) / TIMED_STEPS


def generate_up_to(
    decoder: Decoder, prompts: Sequence[list[int]], max_new_tokens: int, decoding: Decoding
) -> None:
    requests = build_requests(prompts, replace(decoding, max_new_tokens=max_new_tokens))
    generate(decoder, requests, NO_END_IDS, batch_size=len(requests))


def pick_evenly(items: Sequence[Item], count: int) -> list[Item]:
    """Pick `count` items (at least one, at most all) at equal distances."""
    count = max(min(count, len(items)), 1)
    return [items[number * len(items) // count] for number in range(count)]


def measure_seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
