"""Request and answer: what is asked for, the result, and its state while it is generated."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from torch import Tensor

from loratune.generation.constrained import Constraint
from loratune.generation.decoding import Decoding
from loratune.generation.prompt_lookup import NgramIndex
from loratune.generation.sampling import (
    choose_constrained,
    choose_tokens,
    choose_with_penalty,
    make_generator,
)

MAX_GUESSES = 16  # guessed tokens of one answer in one call


@dataclass(frozen=True)
class Request:
    """A prompt to answer. The answer depends on these fields and the model alone."""

    prompt: list[int]
    decoding: Decoding = field(default_factory=Decoding)
    constraint: Constraint | None = None  # None: any text is allowed
    number: int = 0  # requests with the same seed draw different random numbers if this differs


@dataclass(frozen=True)
class Answer:
    """The answer to a request."""

    ids: list[int]  # without EOS
    ended: str  # "eos", or "length" if it reached its limit


def build_requests(
    prompts: Sequence[list[int]],
    decoding: Decoding,
    *,
    constraints: Sequence[Constraint | None] | None = None,
    samples: int = 1,
) -> list[Request]:
    """Build the requests for `samples` answers to each prompt.

    Args:
        prompts: token ids.
        decoding: the settings of the first sample; each further sample has the next seed.
        constraints: one for each prompt.
        samples: answers to each prompt.

    Returns:
        All prompts' requests for the first sample, then those for the second, and so on.
    """
    constrained = list(zip(prompts, constraints or [None] * len(prompts), strict=True))
    return [
        Request(prompt, replace(decoding, seed=decoding.seed + sample), constraint, number)
        for sample in range(samples)
        for number, (prompt, constraint) in enumerate(constrained)
    ]


def compute_max_answer_tokens(prompt: Sequence[int], max_new_tokens: int, max_positions: int) -> int:
    """Return how many tokens an answer may have: `max_new_tokens`, or fewer near the model's last position.

    Raises ValueError for a prompt that is empty or leaves no room for an answer.
    """
    max_tokens = min(max_new_tokens, max_positions - len(prompt))
    if not prompt or max_tokens < 1:
        raise ValueError(f"a prompt of {len(prompt)} tokens; there must be 1 to {max_positions - 1}")
    return max_tokens


@dataclass
class RunningAnswer:
    """An answer that is being generated. Its newest token is not in the KV cache yet."""

    id: int
    request: Request
    max_tokens: int
    ids: list[int] = field(default_factory=list)
    guess: list[int] = field(default_factory=list)  # may follow the newest token; computed with it
    tokens_added: int = 0  # by the last call, EOS included

    @property
    def prompt(self) -> list[int]:
        return self.request.prompt

    @cached_property
    def generator(self) -> np.random.Generator:
        return make_generator(self.request.decoding.seed, self.request.number)

    @cached_property
    def text(self) -> NgramIndex:
        """The prompt and answer, indexed when the answer starts; all waiting ones would take gigabytes."""
        return NgramIndex(self.prompt)

    @property
    def newest_token(self) -> int:
        """The token that is computed next."""
        return self.ids[-1] if self.ids else self.prompt[-1]

    @property
    def cached_length(self) -> int:
        """The number of tokens whose keys and values are in the cache and valid."""
        return len(self.prompt) + len(self.ids) - 1

    def look_ahead(self, min_guesses: int) -> None:
        """Guess this many tokens, or more if the last guesses were right: repetitive text keeps repeating."""
        count = max(min_guesses, self.tokens_added)
        self.guess = self.text.guess(min(count, MAX_GUESSES, self.max_tokens - len(self.ids) - 1))

    def choose(self, logits: Tensor) -> Iterator[int]:
        """Yield the token after the newest one, then those after each guess.

        Args:
            logits: [1 + guesses, vocabulary].
        """
        decoding, constraint = self.request.decoding, self.request.constraint
        if constraint:
            return choose_constrained(
                logits, constraint, self.ids, decoding=decoding, generator=self.generator
            )
        if decoding.repetition_penalty != 1:
            return choose_with_penalty(logits, self.ids, decoding, generator=self.generator)
        return choose_tokens(logits, decoding, self.generator)

    def add(self, choices: Iterator[int], end_ids: Collection[int]) -> Answer | None:
        """Append the choices up to the first that was not guessed; return the answer once it is finished."""
        self.tokens_added = 0
        for token, guessed in zip(choices, [*self.guess, None], strict=False):
            self.tokens_added += 1
            if token in end_ids:
                return Answer(self.ids, "eos")
            self.ids.append(token)
            self.text.append(token)
            if len(self.ids) == self.max_tokens:
                return Answer(self.ids, "length")
            if token != guessed:
                break
        return None
