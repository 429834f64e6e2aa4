"""Write answers, many at the same time. A finished answer leaves the batch and the next prompt takes its place.

One step reads all the weights once, however many answers are being written: that is why a batch pays. New prompts
travel in the same call as the others' single tokens.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from loratune.generation.cache import Cache
from loratune.generation.sampling import choose, generator_of
from loratune.models.merge import merged
from loratune.settings import Decoding

PROMPT_TOKENS = 512  # of new prompts in one call, to bound its memory; a longer prompt is a call's only new one


@dataclass(frozen=True)
class Answer:
    ids: list[int]  # without end-of-text
    ended: str  # eos, or length: it was cut


@dataclass
class Writing:
    """An answer in the making. Its newest token has not been fed yet."""

    number: int  # of its prompt
    prompt: list[int]
    room: int  # most tokens that it may have
    generator: np.random.Generator
    ids: list[int] = field(default_factory=list)

    def add(self, token: int, eos_id: int) -> Answer | None:
        """Append a token; the answer, if that finishes it."""
        if token == eos_id:
            return Answer(self.ids, "eos")
        self.ids.append(token)
        return Answer(self.ids, "length") if len(self.ids) == self.room else None


@torch.inference_mode()
def generate(
    decoder, prompts: list[list[int]], eos_id: int, decoding: Decoding, on_progress: Callable[[int, int], None] | None = None
) -> list[Answer]:
    """Continue each prompt until end-of-text, `max_new_tokens`, or the model's last position.

    An answer is a function of its prompt, its number and the settings, not of the others. `on_progress(tokens, answers)`
    is told after each step how many were added. Raises ValueError for a prompt that is empty or leaves no room.
    """
    todo = [
        Writing(number, prompt, room_for(decoder, prompt, decoding), generator_of(decoding.seed, number))
        for number, prompt in enumerate(prompts)
    ]
    capacity = max((len(answer.prompt) + answer.room for answer in todo), default=0)
    cache = Cache(decoder, min(decoding.batch_size, len(todo)), capacity)
    # The shortest first: they fill the slots within few calls, and the long ones' calls carry many running answers.
    waiting = deque(sorted(todo, key=lambda answer: len(answer.prompt)))
    writing: list[Writing] = []  # in the order of the cache's slots
    answers: dict[int, Answer] = {}
    with merged(decoder):
        while waiting or writing:
            starting = admit(waiting, decoding.batch_size - len(writing))
            logits = next_logits(decoder, cache, writing, starting)
            writing += starting
            tokens = choose(logits, decoding, [answer.generator for answer in writing])
            finished = [answer.add(token, eos_id) for answer, token in zip(writing, tokens, strict=True)]
            for slot in reversed(range(len(writing))):
                if finished[slot]:
                    answers[writing[slot].number] = finished[slot]
                    cache.free(slot)
                    writing[slot] = writing[-1]
                    writing.pop()
            if on_progress:
                on_progress(len(tokens), sum(answer is not None for answer in finished))
    return [answers[number] for number in range(len(prompts))]


def room_for(decoder, prompt: list[int], decoding: Decoding) -> int:
    room = min(decoding.max_new_tokens, decoder.spec.max_positions - len(prompt))
    if not prompt or room < 1:
        raise ValueError(f"a prompt of {len(prompt)} tokens; there must be 1 to {decoder.spec.max_positions - 1}")
    return room


def admit(waiting: deque[Writing], free: int) -> list[Writing]:
    """Take as many from the queue as there are free slots and one call should compute; at least one, if a slot is free."""
    starting: list[Writing] = []
    tokens = 0
    while waiting and len(starting) < free and (not starting or tokens + len(waiting[0].prompt) <= PROMPT_TOKENS):
        starting.append(waiting.popleft())
        tokens += len(starting[-1].prompt)
    return starting


def next_logits(decoder, cache: Cache, writing: list[Writing], starting: list[Writing]) -> torch.Tensor:
    """The next token's logits, [answers, vocabulary]: those of the running answers, then those of the new ones."""
    ids = [answer.ids[-1] for answer in writing]
    positions = list(cache.lengths)
    ends = list(range(len(writing)))
    for answer in starting:
        ids += answer.prompt
        positions += range(len(answer.prompt))
        ends.append(len(ids) - 1)
    ids, positions, ends = (torch.tensor(numbers, device=decoder.head_weight.device) for numbers in (ids, positions, ends))
    attend = cache.attend([len(answer.prompt) for answer in starting])
    return decoder.logits(decoder(ids, positions, attend, wanted=ends))
