"""Samples follow the distribution of temperature, top-k and top-p."""

import numpy as np
import pytest
import torch

from loratune.generation import sampling
from loratune.generation.decoding import Decoding
from loratune.generation.sampling import choose_tokens, make_generator, sample_token

LOGITS = torch.tensor([1.0, -2.0, 3.0, 0.5, 2.0, -1.0])


def sample_shares(decoding: Decoding, draws: int = 4000) -> np.ndarray:
    """How often each token comes up, over evenly spread draws: exact up to 1 / draws."""
    tokens = [sample_token(LOGITS, decoding, (draw + 0.5) / draws) for draw in range(draws)]
    return np.bincount(tokens, minlength=len(LOGITS)) / draws


def compute_expected_shares(temperature: float, tokens: list[int]) -> np.ndarray:
    logits = torch.full_like(LOGITS, -torch.inf)
    logits[tokens] = LOGITS[tokens]
    return (logits / temperature).softmax(-1).numpy()


@pytest.mark.parametrize(
    ("decoding", "tokens"),
    [
        (Decoding(temperature=0.7), [0, 1, 2, 3, 4, 5]),
        (Decoding(temperature=1.0, top_k=3), [2, 4, 0]),
        (Decoding(temperature=1.0, top_k=100), [0, 1, 2, 3, 4, 5]),
        # At temperature 1 the probabilities are .61 .22 .08 .05 ... : .61 < .7 <= .83, so two tokens are the
        # nucleus.
        (Decoding(temperature=1.0, top_p=0.7), [2, 4]),
        (Decoding(temperature=1.0, top_p=0.01), [2]),
        # Of the three likeliest (.67 .24 .09) top-p 0.6 keeps one: it applies to what top-k leaves.
        (Decoding(temperature=1.0, top_k=3, top_p=0.66), [2]),
    ],
)
def test_sampled_shares_match_the_probabilities(decoding, tokens):
    assert (
        np.abs(sample_shares(decoding) - compute_expected_shares(decoding.temperature, tokens)).max() < 1e-3
    )


def test_top_p_beyond_the_candidates_sorts_all_tokens(monkeypatch):
    decoding = Decoding(temperature=1.0, top_p=0.95)
    whole = sample_shares(decoding)
    monkeypatch.setattr(sampling, "TOP_P_CANDIDATES", 2)
    assert (sample_shares(decoding) == whole).all()


def test_extreme_draws_give_possible_tokens():
    for decoding in (
        Decoding(temperature=1.0),
        Decoding(temperature=1.0, top_p=0.9),
        Decoding(temperature=1e-6),
    ):
        for draw in (0.0, 1 - 2**-53):
            assert compute_expected_shares(1.0, [0, 1, 2, 3, 4, 5])[sample_token(LOGITS, decoding, draw)] > 0


def test_greedy_takes_the_first_maximum_without_drawing():
    generator = make_generator(0, 0)
    assert list(choose_tokens(torch.tensor([[0.0, 2.0, 2.0], [3.0, 2.0, 3.0]]), Decoding(), generator)) == [
        1,
        0,
    ]
    assert generator.random() == make_generator(0, 0).random()


def test_each_sampled_token_draws_once():
    decoding, generator, same = Decoding(temperature=1.0), make_generator(0, 0), make_generator(0, 0)
    choices = choose_tokens(LOGITS.expand(5, -1), decoding, generator)
    assert [next(choices) for _ in range(3)] == [
        sample_token(LOGITS, decoding, same.random()) for _ in range(3)
    ]
    assert generator.random() == same.random()


def test_generators_differ_by_seed_and_number():
    draws = {make_generator(seed, number).random() for seed in range(3) for number in range(3)}
    assert len(draws) == 9
