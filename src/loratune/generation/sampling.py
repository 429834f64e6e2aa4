"""Choose the next token: the likeliest one, or one sampled with temperature, top-k and top-p."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from loratune.generation.constrained import Constraint
from loratune.generation.decoding import Decoding

# At lower temperatures the likeliest token would be drawn anyway, and dividing by them may overflow.
GREEDY_BELOW = 1e-3
# Only these are sorted at first, because sorting a vocabulary takes as long as half a step of a small model.
TOP_P_CANDIDATES = 1024


def make_generator(seed: int, number: int) -> np.random.Generator:
    """Make a request's random generator, which depends neither on the model nor on the batch."""
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
    """Lower the logits of `tokens`: divide positive ones by the penalty, multiply negative ones by it.

    Keskar et al. 2019, "CTRL", section 4.1; arXiv:1909.05858. The paper divides all logits, which would raise
    negative ones; multiplying these has become common practice.

    Args:
        logits: [vocabulary].
        tokens: the ids.
        penalty: 1 changes nothing.
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
    """Choose as `choose_tokens`, among the tokens that the constraint allows.

    The others are left out before temperature, top-k and top-p are applied, as if they did not exist.

    Args:
        logits: [rows, vocabulary].
        constraint: of the answer.
        generated: the answer's tokens so far; those that are chosen here follow them.
        decoding: the settings.
        generator: of the request.
    """
    state = constraint.read(generated)
    greedy = decoding.temperature < GREEDY_BELOW
    for row, likeliest in zip(logits, logits.argmax(-1).tolist(), strict=True):
        if greedy and constraint.is_allowed(state, likeliest):
            token = likeliest  # usually; then there is no need to list all allowed tokens
        else:
            allowed = constraint.list_allowed(state)
            token = allowed[next(choose_tokens(row[allowed][None], decoding, generator))]
        yield token
        state = constraint.after(state, token)


def sample_token(logits: Tensor, decoding: Decoding, draw: float) -> int:
    """Return the token at the fraction `draw` of the probability mass that top-k, and then top-p, keep.

    Args:
        logits: [vocabulary].
        decoding: temperature, top-k and top-p.
        draw: a uniform random number from 0 to 1.

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
    """Return the highest probabilities, enough for `top_k` or `top_p`, in descending order, and their ids."""
    size = decoding.top_k or TOP_P_CANDIDATES
    if size < len(probabilities):
        best, ids = probabilities.topk(size)
        if decoding.top_k or best.sum() >= decoding.top_p:
            return best, ids
    return probabilities.sort(descending=True)


def invert_cdf(mass: Tensor, draw: float) -> int:
    """Return the first index at which the cumulative probability exceeds this fraction of the total."""
    return min(int(torch.searchsorted(mass, draw * mass[-1], right=True)), len(mass) - 1)
