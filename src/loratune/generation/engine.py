"""Write answers, many at the same time. A finished answer leaves the batch and the next prompt takes its
place.

One step reads all the weights once, however many answers are being written: that is why a batch pays. New
prompts travel in the same call as the others' newest tokens, and so do guesses of what follows these: the
model's choice at each token in turn is added to the answer, up to the first that was guessed wrong. So an
answer is what it would be without guesses, and a random number is drawn for each of its tokens and no other
(with random guesses: Leviathan et al. 2023, "Fast inference from transformers via speculative decoding";
arXiv:2211.17192).

A prompt that is to be answered several times is read once: its other answers begin with a copy of what is
stored of it.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from loratune.config.shared import DecodingConfig
from loratune.generation.cache import KVCache, choose_slot_count
from loratune.generation.constrained import Constraint
from loratune.generation.prompt_lookup import NgramIndex
from loratune.generation.sampling import (
    choose_constrained,
    choose_tokens,
    choose_with_penalty,
    make_generator,
)
from loratune.models.merge import merge_adapter

MAX_PREFILL_TOKENS = (
    512  # of new prompts in one call, to bound its memory; a longer prompt is a call's only new one
)
MAX_GUESSES = 16  # of an answer in one call, at most
CHEAP_CALL_TOKENS = 16  # tokens in one call: fewer take hardly less time


@dataclass(frozen=True)
class Answer:
    ids: list[int]  # without end-of-text
    ended: str  # eos, or length: it was cut


@dataclass
class RunningAnswer:
    """An answer in the making. Its newest token has not been fed yet."""

    number: int  # of its prompt
    prompt: list[int]
    room: int  # most tokens that it may have
    generator: np.random.Generator
    constraint: Constraint | None = None
    ids: list[int] = field(default_factory=list)
    guess: list[int] = field(default_factory=list)  # what may follow the newest token, fed with it
    tokens_added: int = 0  # tokens that the last call added

    @cached_property
    def text(self) -> NgramIndex:
        """Made when the answer begins: those of all prompts together would take gigabytes."""
        return NgramIndex(self.prompt)

    @property
    def newest_token(self) -> int:
        """The token to be fed next."""
        return self.ids[-1] if self.ids else self.prompt[-1]

    @property
    def cached_length(self) -> int:
        """Tokens whose keys and values are right."""
        return len(self.prompt) + len(self.ids) - 1

    def look_ahead(self, min_guesses: int) -> None:
        """Guess so many tokens, or one more than were guessed right the last time: text that repeats goes on
        doing so.
        """
        self.guess = self.text.guess(
            min(max(min_guesses, self.tokens_added), MAX_GUESSES, self.room - len(self.ids) - 1)
        )

    def choices(self, logits: torch.Tensor, decoding: DecodingConfig) -> Iterator[int]:
        """The token after the newest one, then those after each guess; logits [1 + guesses, vocabulary]."""
        if self.constraint:
            return choose_constrained(logits, self.constraint, self.ids, decoding, self.generator)
        if decoding.repetition_penalty != 1:
            return choose_with_penalty(logits, self.ids, decoding, self.generator)
        return choose_tokens(logits, decoding, self.generator)

    def add(self, choices: Iterator[int], end_ids: Collection[int]) -> Answer | None:
        """Append the choice at each token fed, up to the first that was not guessed; the answer, if that
        finishes it.
        """
        self.tokens_added = 0
        for token, guessed in zip(choices, [*self.guess, None], strict=False):
            self.tokens_added += 1
            if token in end_ids:
                return Answer(self.ids, "eos")
            self.ids.append(token)
            self.text.append(token)
            if len(self.ids) == self.room:
                return Answer(self.ids, "length")
            if token != guessed:
                break
        return None


@torch.inference_mode()
def generate(
    decoder,
    prompts: list[list[int]],
    end_ids: Collection[int],
    decoding: DecodingConfig,
    on_progress: Callable[[int, int], None] | None = None,
    constraints: Sequence[Constraint | None] | None = None,
    samples: int = 1,
    known_answers: Mapping[int, Answer] | None = None,
    on_answer: Callable[[int, Answer], None] | None = None,
) -> list[Answer]:
    """Continue each prompt until one of `end_ids`, `max_new_tokens`, or the model's last position.

    An answer is a function of its prompt, its number, its constraint and the settings, not of the others;
    `constraints` has one for each prompt, or None where any text may be written. With more `samples` than
    one, the answers to all prompts with the next seed follow, and so on. `known` are answers that need not be
    written, by their place in that order. `on_progress(tokens, answers)` is told after each step how many
    were added, `on_answer(place, answer)` each one. Raises ValueError for a prompt that is empty or leaves no
    room.
    """
    answers = dict(known_answers or {})
    asked = (
        RunningAnswer(
            sample * len(prompts) + number,
            prompt,
            compute_max_answer_tokens(decoder, prompt, decoding),
            make_generator(decoding.seed + sample, number),
            constraint,
        )
        for number, (prompt, constraint) in enumerate(
            zip(prompts, constraints or [None] * len(prompts), strict=True)
        )
        for sample in range(samples)
        if sample * len(prompts) + number not in answers
    )
    # The shortest first: they fill the slots within few calls, and the long ones' calls carry many running
    # answers.
    waiting = deque(sorted(asked, key=lambda answer: (len(answer.prompt), answer.prompt)))
    capacity = max((len(answer.prompt) + answer.room for answer in waiting), default=1)
    slots = choose_slot_count(decoder, min(decoding.batch_size, len(waiting)), capacity)
    cache = KVCache(decoder, slots, capacity)
    writing: list[RunningAnswer] = []  # in the order of the cache's slots
    with merge_adapter(decoder):
        while waiting or writing:
            starting = fill_slots(waiting, writing, cache, slots)
            for answer in writing:
                answer.look_ahead(CHEAP_CALL_TOKENS // len(writing) - 1)
            logits = compute_next_logits(decoder, cache, writing, starting)
            writing += starting
            finished = []
            for slot, (answer, rows) in enumerate(zip(writing, logits, strict=True)):
                finished.append(answer.add(answer.choices(rows, decoding), end_ids))
                cache.truncate(slot, answer.cached_length)
            if on_progress:
                on_progress(
                    sum(answer.tokens_added for answer in writing),
                    sum(answer is not None for answer in finished),
                )
            for slot in reversed(range(len(writing))):
                if finished[slot]:
                    answers[writing[slot].number] = finished[slot]
                    if on_answer:
                        on_answer(writing[slot].number, finished[slot])
                    cache.free_slot(slot)
                    writing[slot] = writing[-1]
                    writing.pop()
    return [answers[number] for number in range(samples * len(prompts))]


def compute_max_answer_tokens(decoder, prompt: list[int], decoding: DecodingConfig) -> int:
    room = min(decoding.max_new_tokens, decoder.spec.max_positions - len(prompt))
    if not prompt or room < 1:
        raise ValueError(
            f"a prompt of {len(prompt)} tokens; there must be 1 to {decoder.spec.max_positions - 1}"
        )
    return room


def fill_slots(
    waiting: deque[RunningAnswer], running: list[RunningAnswer], cache: KVCache, slots: int
) -> list[RunningAnswer]:
    """Fill the free slots from the queue, in which equal prompts stand together.

    Where a running answer has the same prompt, the new one joins them. The others are returned: the next call
    reads their prompts, as many as one call should compute, but at least one.
    """
    starting: list[RunningAnswer] = []
    tokens = 0
    while waiting and len(running) + len(starting) < slots:
        answer = waiting[0]
        slot = next((slot for slot, other in enumerate(running) if other.prompt == answer.prompt), None)
        if slot is not None:
            cache.copy_prefix(slot, answer.cached_length)
            running.append(answer)
        elif starting and (
            answer.prompt == starting[-1].prompt or tokens + len(answer.prompt) > MAX_PREFILL_TOKENS
        ):
            break  # until that prompt has been read, or there is time for this one
        else:
            starting.append(answer)
            tokens += len(answer.prompt)
        waiting.popleft()
    return starting


def compute_next_logits(
    decoder, cache: KVCache, running: list[RunningAnswer], starting: list[RunningAnswer]
) -> tuple[torch.Tensor, ...]:
    """The next token's logits, [tokens, vocabulary] for each answer: after its newest token and after each
    guessed one.

    Those of the running answers come first, then the new ones', which have one row each.
    """
    ids, positions = [], []
    for answer in running:
        ids += [answer.newest_token, *answer.guess]
        positions += range(answer.cached_length, answer.cached_length + 1 + len(answer.guess))
    wanted = list(range(len(ids)))
    for answer in starting:
        ids += answer.prompt
        positions += range(len(answer.prompt))
        wanted.append(len(ids) - 1)
    ids, positions, wanted = (
        torch.tensor(numbers, device=decoder.head_weight.device) for numbers in (ids, positions, wanted)
    )
    more = [1 + len(answer.guess) for answer in running]
    attend = cache.prepare_attention(more, [len(answer.prompt) for answer in starting])
    return decoder.logits(decoder(ids, positions, attend, wanted)).split(more + [1] * len(starting))
