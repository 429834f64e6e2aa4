"""Response likelihoods against `transformers`, row by row, and their independence of the batches."""

import math

import numpy as np
import pytest
import torch

from loratune.data.example import Example
from loratune.evaluation import likelihood
from loratune.evaluation.likelihood import (
    compute_likelihood_means,
    count_targets,
    find_ends,
    response_losses,
    response_nll,
)
from support.small_models import GPT2_SHAPES, LLAMA_SHAPES, build_reference, convert_to_decoder


def rows():
    generator = torch.Generator().manual_seed(3)
    lengths = [(5, 9), (30, 1), (0, 6), (2, 40), (17, 3)]
    return [
        Example(
            *(torch.randint(1, 200, (size,), generator=generator).tolist() for size in pair),
            id=str(pair),
            source="x",
        )
        for pair in lengths
    ]


@pytest.mark.parametrize("config", [GPT2_SHAPES["cerebras-gpt"], LLAMA_SHAPES["smollm2"]])
@torch.no_grad()
def test_each_row_is_what_transformers_gives_it_alone(config):
    model = build_reference(config)
    found = response_losses(convert_to_decoder(model), rows())
    assert found[:, 0].tolist() == response_nll(convert_to_decoder(model), rows()).tolist()
    for row, (nll, last) in zip(rows(), found, strict=True):
        ids = torch.tensor([row.prompt + row.response])
        log_likely = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        wanted = log_likely[max(len(row.prompt) - 1, 0) :]
        assert len(wanted) == count_targets([row])[0]
        assert nll == pytest.approx(-wanted.sum().item(), rel=1e-4)
        assert last == pytest.approx(-wanted[-1].item(), rel=1e-4)


def test_batches_do_not_change_the_result(monkeypatch):
    decoder, seen = convert_to_decoder(build_reference(LLAMA_SHAPES["smollm2"])), []
    together = response_nll(decoder, rows(), lambda numbers, nll: seen.extend(zip(numbers, nll, strict=True)))
    assert sorted(seen) == list(enumerate(together))
    monkeypatch.setattr(likelihood, "BATCH_TOKENS", 1)
    assert response_nll(decoder, rows()) == pytest.approx(together, rel=1e-5)


def test_means_are_global_sums_over_global_counts():
    found = compute_likelihood_means(np.array([2.0, 10.0]), np.array([1, 3]), np.array([3, 21]))
    assert found["nll"] == pytest.approx(3) and found["perplexity"] == pytest.approx(math.e**3)
    assert found["bits_per_byte"] == pytest.approx(12 / math.log(2) / 24)
    assert found["target_tokens"] == 4


def test_a_response_that_was_cut_has_no_end():
    endings = [[5, 9], [5, 7], [9], []]
    assert find_ends([Example([1], ids, id="1", source="x") for ids in endings], {9}).tolist() == [1, 0, 1, 0]
