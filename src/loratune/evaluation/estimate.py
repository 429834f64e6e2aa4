"""How long reading rows and writing answers will take, from timing a small piece of it on this machine."""

import math
import time
from collections.abc import Callable, Sequence

from loratune.config.shared import Decoding
from loratune.data.example import Encoded
from loratune.data.packing import fed_tokens
from loratune.evaluation.likelihood import response_nll
from loratune.generation.cache import slots_for
from loratune.generation.engine import generate
from loratune.system.console import console

PIECE = 512  # tokens that are read
STEPS = 4
BEGINNING = 8  # tokens of each prompt before these steps: how long it is hardly matters to them
NO_END = frozenset()  # answers that never end


def reading_seconds(decoder, rows: Sequence[Encoded]) -> float:
    """What `response_nll` takes for the rows; those without a target are not read."""
    rows = [row for row in rows if row.response]
    if not rows:
        return 0.0
    tokens = sum(map(fed_tokens, rows))
    some = evenly(rows, round(PIECE / max(tokens, 1) * len(rows)))
    response_nll(decoder, some[:1])  # warms up
    return timed(lambda: response_nll(decoder, some)) * tokens / max(sum(map(fed_tokens, some)), 1)


def answering_seconds(decoder, prompts: Sequence[list[int]], decoding: Decoding, samples: int = 1) -> float:
    """What `generate` takes for the prompts if each answer becomes as long as it may."""
    if not prompts:
        return 0.0
    capacity = min(max(map(len, prompts)) + decoding.max_new_tokens, decoder.spec.max_positions)
    answers = samples * len(prompts)
    slots = slots_for(decoder, min(decoding.batch_size, answers), capacity)
    # All different: equal ones would be read once.
    chosen = enumerate(evenly(list(prompts) * samples, slots))
    some = [[number % decoder.spec.vocabulary, *prompt[1 - BEGINNING :]] for number, prompt in chosen]
    first, more = (timed(lambda most=most: write(decoder, some, most, decoding)) for most in (1, 1 + STEPS))
    steps = math.ceil(answers / slots) * (decoding.max_new_tokens - 1)
    reading = reading_seconds(decoder, [Encoded(prompt, prompt[-1:], "", "") for prompt in prompts])
    return reading + steps * max(more - first, 0.0) / STEPS  # of a tiny model the first call may take longer


def write(decoder, prompts: list[list[int]], most: int, decoding: Decoding) -> None:
    generate(decoder, prompts, NO_END, decoding.model_copy(update={"max_new_tokens": most}))


def evenly(items: Sequence, count: int) -> list:
    """`count` of the items (at least one, at most all), at equal distances."""
    count = max(min(count, len(items)), 1)
    return [items[number * len(items) // count] for number in range(count)]


def timed(work: Callable[[], object]) -> float:
    with console.status("Timing a small piece of the work ..."):
        started = time.perf_counter()
        work()
        return time.perf_counter() - started
