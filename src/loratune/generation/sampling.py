"""The next token: the likeliest one, or one drawn at a temperature from the likeliest few."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from loratune.config.shared import Decoding
from loratune.generation.constrained import Constraint

GREEDY_BELOW = 1e-3  # temperatures for which the likeliest token would be drawn anyway, if the division did not overflow
CANDIDATES = 1024  # sorted at first: sorting a whole vocabulary takes as long as half a step of a small model


def generator_of(seed: int, number: int) -> np.random.Generator:
    """A prompt's own random numbers: the same for every model and whatever else is in the batch."""
    return np.random.default_rng((seed, number))


def choose(logits: Tensor, decoding: Decoding, generator: np.random.Generator) -> Iterator[int]:
    """One token id after another for the rows of logits, [rows, vocabulary]; what is not asked for is not drawn."""
    if decoding.temperature < GREEDY_BELOW:
        yield from logits.argmax(-1).tolist()
    else:
        for row in logits:
            yield sample(row, decoding, generator.random())


def choose_anew(logits: Tensor, written: Sequence[int], decoding: Decoding, generator: np.random.Generator) -> Iterator[int]:
    """As `choose`, with a penalty on the tokens `written` before and on those chosen here."""
    written = list(written)
    for row in logits:
        token = next(choose(penalized(row, written, decoding.repetition_penalty)[None], decoding, generator))
        yield token
        written.append(token)


def penalized(logits: Tensor, tokens: Sequence[int], penalty: float) -> Tensor:
    """logits [vocabulary], those of `tokens` lowered: divided by the penalty if positive, multiplied by it if negative.

    Keskar et al. 2019, "CTRL", section 4.1; arXiv:1909.05858. There all scores are divided, which raises negative ones; to
    multiply these is what is commonly done since.
    """
    seen = torch.tensor(tokens, dtype=torch.long, device=logits.device)
    scores = logits[seen]
    return logits.index_put((seen,), torch.where(scores < 0, scores * penalty, scores / penalty))


def choose_within(
    logits: Tensor, constraint: Constraint, written: Sequence[int], decoding: Decoding, generator: np.random.Generator
) -> Iterator[int]:
    """As `choose`, from the tokens that the constraint allows after those `written` and the ones chosen here.

    The others are left out before the temperature, top-k and top-p are applied: it is as if there were no such tokens.
    """
    state = constraint.read(written)
    greedy = decoding.temperature < GREEDY_BELOW
    for row, likeliest in zip(logits, logits.argmax(-1).tolist(), strict=True):
        if greedy and constraint.allows(state, likeliest):
            token = likeliest  # as it mostly is: there is no need to look for all that are allowed
        else:
            allowed = constraint.allowed(state)
            token = allowed[next(choose(row[allowed][None], decoding, generator))]
        yield token
        state = constraint.after(state, token)


def sample(logits: Tensor, decoding: Decoding, draw: float) -> int:
    """The token at the share `draw` (0 to 1) of the probability that top-k, and then top-p, leave of logits [vocabulary].

    Top-p is nucleus sampling: Holtzman et al. 2020, section 3.1; arXiv:1904.09751.
    """
    probabilities = (logits.float() / decoding.temperature).softmax(-1)
    if decoding.top_k == 0 and decoding.top_p == 1:
        return at_share(probabilities.double().cumsum(-1), draw)
    best, ids = likeliest(probabilities, decoding)
    mass = best.double().cumsum(-1)
    if decoding.top_p < 1:
        wanted = decoding.top_p * (mass[-1] if decoding.top_k else 1.0)
        mass = mass[: int(torch.searchsorted(mass, wanted)) + 1]
    return int(ids[at_share(mass, draw)])


def likeliest(probabilities: Tensor, decoding: Decoding) -> tuple[Tensor, Tensor]:
    """The `top_k` highest probabilities, or enough of them for `top_p`, and their tokens; the highest first."""
    size = decoding.top_k or CANDIDATES
    if size < len(probabilities):
        best, ids = probabilities.topk(size)
        if decoding.top_k or best.sum() >= decoding.top_p:
            return best, ids
    return probabilities.sort(descending=True)


def at_share(mass: Tensor, draw: float) -> int:
    """The first place where the cumulated probability exceeds this share of all of it."""
    return min(int(torch.searchsorted(mass, draw * mass[-1], right=True)), len(mass) - 1)
