"""Choose the next token: the likeliest one, or one sampled with temperature, top-k and top-p."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from loratune.generation.constrained import Constraint
from loratune.generation.decoding import Decoding

# At lower temperatures the likeliest token would be drawn anyway, if the division did not overflow.
GREEDY_BELOW = 1e-3
# Sorted at first: sorting a whole vocabulary takes as long as half a step of a small model.
TOP_P_CANDIDATES = 1024


def make_generator(seed: int, number: int) -> np.random.Generator:
    """Make a request's own random numbers: the same for every model and whatever else is in the batch."""
    return np.random.default_rng((seed, number))


def choose_tokens(logits: Tensor, decoding: Decoding, generator: np.random.Generator) -> Iterator[int]:
    """Yield one token id for each row of logits, [rows, vocabulary].

    A random number is drawn only when its token is asked for.
    """
    if decoding.temperature < GREEDY_BELOW:
        yield from logits.argmax(-1).tolist()
    else:
        for row in logits:
            yield sample_token(row, decoding, generator.random())


def choose_with_penalty(
    logits: Tensor, generated: Sequence[int], decoding: Decoding, *, generator: np.random.Generator
) -> Iterator[int]:
    """Choose as `choose_tokens`, with a penalty on the tokens `generated` before and on those chosen here."""
    generated = list(generated)
    for row in logits:
        penalised = apply_repetition_penalty(row, generated, decoding.repetition_penalty)
        token = next(choose_tokens(penalised[None], decoding, generator))
        yield token
        generated.append(token)


def apply_repetition_penalty(logits: Tensor, tokens: Sequence[int], penalty: float) -> Tensor:
    """Lower the logits, [vocabulary], of `tokens`: divided by the penalty if positive, else multiplied by it.

    Keskar et al. 2019, "CTRL", section 4.1; arXiv:1909.05858. There all logits are divided, which raises
    negative ones; multiplying these is common practice since.
    """
    seen = torch.tensor(tokens, dtype=torch.long, device=logits.device)
    scores = logits[seen]
    return logits.index_put((seen,), torch.where(scores < 0, scores * penalty, scores / penalty))


def choose_constrained(
    logits: Tensor,
    constraint: Constraint,
    generated: Sequence[int],
    *,
    decoding: Decoding,
    generator: np.random.Generator,
) -> Iterator[int]:
    """Choose as `choose_tokens`, among the tokens that the constraint allows after those `generated` before
    and those chosen here.

    The others are left out before temperature, top-k and top-p are applied, as if they did not exist.
    """
    state = constraint.read(generated)
    greedy = decoding.temperature < GREEDY_BELOW
    for row, likeliest in zip(logits, logits.argmax(-1).tolist(), strict=True):
        if greedy and constraint.is_allowed(state, likeliest):
            token = likeliest  # as it mostly is: there is no need to look for all that are allowed
        else:
            allowed = constraint.list_allowed(state)
            token = allowed[next(choose_tokens(row[allowed][None], decoding, generator))]
        yield token
        state = constraint.after(state, token)


def sample_token(logits: Tensor, decoding: Decoding, draw: float) -> int:
    """Return the token at the fraction `draw` (0 to 1) of the probability that top-k, and then top-p, keep.

    Args:
        logits: [vocabulary].
        decoding: temperature, top-k and top-p.
        draw: a uniform random number.

    Top-p is nucleus sampling: Holtzman et al. 2020, section 3.1; arXiv:1904.09751.
    """
    probabilities = (logits.float() / decoding.temperature).softmax(-1)
    if decoding.top_k == 0 and decoding.top_p == 1:
        return invert_cdf(probabilities.double().cumsum(-1), draw)
    best, ids = find_top_tokens(probabilities, decoding)
    mass = best.double().cumsum(-1)
    if decoding.top_p < 1:
        threshold = decoding.top_p * (mass[-1] if decoding.top_k else 1.0)
        mass = mass[: int(torch.searchsorted(mass, threshold)) + 1]
    return int(ids[invert_cdf(mass, draw)])


def find_top_tokens(probabilities: Tensor, decoding: Decoding) -> tuple[Tensor, Tensor]:
    """Return the `top_k` highest probabilities, or enough of them for `top_p`, and their tokens, the highest
    first.
    """
    size = decoding.top_k or TOP_P_CANDIDATES
    if size < len(probabilities):
        best, ids = probabilities.topk(size)
        if decoding.top_k or best.sum() >= decoding.top_p:
            return best, ids
    return probabilities.sort(descending=True)


def invert_cdf(mass: Tensor, draw: float) -> int:
    """Return the first place where the cumulated probability exceeds this fraction of the total."""
    return min(int(torch.searchsorted(mass, draw * mass[-1], right=True)), len(mass) - 1)
