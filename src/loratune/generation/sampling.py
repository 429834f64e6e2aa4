"""The next token: the likeliest one, or one drawn at a temperature from the likeliest few."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from loratune.config.shared import DecodingConfig
from loratune.generation.constrained import Constraint

GREEDY_BELOW = (
    1e-3  # temperatures for which the likeliest token would be drawn anyway, if the division did not overflow
)
TOP_P_CANDIDATES = (
    1024  # sorted at first: sorting a whole vocabulary takes as long as half a step of a small model
)


def make_generator(seed: int, number: int) -> np.random.Generator:
    """A prompt's own random numbers: the same for every model and whatever else is in the batch."""
    return np.random.default_rng((seed, number))


def choose_tokens(logits: Tensor, decoding: DecodingConfig, generator: np.random.Generator) -> Iterator[int]:
    """One token id after another for the rows of logits, [rows, vocabulary]; what is not asked for is not
    drawn.
    """
    if decoding.temperature < GREEDY_BELOW:
        yield from logits.argmax(-1).tolist()
    else:
        for row in logits:
            yield sample_token(row, decoding, generator.random())


def choose_with_penalty(
    logits: Tensor, generated: Sequence[int], decoding: DecodingConfig, generator: np.random.Generator
) -> Iterator[int]:
    """As `choose`, with a penalty on the tokens `written` before and on those chosen here."""
    generated = list(generated)
    for row in logits:
        token = next(
            choose_tokens(
                apply_repetition_penalty(row, generated, decoding.repetition_penalty)[None],
                decoding,
                generator,
            )
        )
        yield token
        generated.append(token)


def apply_repetition_penalty(logits: Tensor, tokens: Sequence[int], penalty: float) -> Tensor:
    """logits [vocabulary], those of `tokens` lowered: divided by the penalty if positive, multiplied by it if
    negative.

    Keskar et al. 2019, "CTRL", section 4.1; arXiv:1909.05858. There all scores are divided, which raises
    negative ones; to multiply these is what is commonly done since.
    """
    seen = torch.tensor(tokens, dtype=torch.long, device=logits.device)
    scores = logits[seen]
    return logits.index_put((seen,), torch.where(scores < 0, scores * penalty, scores / penalty))


def choose_constrained(
    logits: Tensor,
    constraint: Constraint,
    generated: Sequence[int],
    decoding: DecodingConfig,
    generator: np.random.Generator,
) -> Iterator[int]:
    """As `choose`, from the tokens that the constraint allows after those `written` and the ones chosen here.

    The others are left out before the temperature, top-k and top-p are applied: it is as if there were no
    such tokens.
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


def sample_token(logits: Tensor, decoding: DecodingConfig, draw: float) -> int:
    """The token at the share `draw` (0 to 1) of the probability that top-k, and then top-p, leave of logits
    [vocabulary].

    Top-p is nucleus sampling: Holtzman et al. 2020, section 3.1; arXiv:1904.09751.
    """
    probabilities = (logits.float() / decoding.temperature).softmax(-1)
    if decoding.top_k == 0 and decoding.top_p == 1:
        return invert_cdf(probabilities.double().cumsum(-1), draw)
    best, ids = find_top_tokens(probabilities, decoding)
    mass = best.double().cumsum(-1)
    if decoding.top_p < 1:
        wanted = decoding.top_p * (mass[-1] if decoding.top_k else 1.0)
        mass = mass[: int(torch.searchsorted(mass, wanted)) + 1]
    return int(ids[invert_cdf(mass, draw)])


def find_top_tokens(probabilities: Tensor, decoding: DecodingConfig) -> tuple[Tensor, Tensor]:
    """The `top_k` highest probabilities, or enough of them for `top_p`, and their tokens; the highest
    first.
    """
    size = decoding.top_k or TOP_P_CANDIDATES
    if size < len(probabilities):
        best, ids = probabilities.topk(size)
        if decoding.top_k or best.sum() >= decoding.top_p:
            return best, ids
    return probabilities.sort(descending=True)


def invert_cdf(mass: Tensor, draw: float) -> int:
    """The first place where the cumulated probability exceeds this share of all of it."""
    return min(int(torch.searchsorted(mass, draw * mass[-1], right=True)), len(mass) - 1)
