"""Compute the negative log-likelihood of reference responses as a sum for each row, and means of the sums."""

import math
from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch

from loratune.data.example import Example
from loratune.data.packing import batch_in_order, input_length, pack
from loratune.models.decoder import Decoder
from loratune.training.objective import target_nll

BATCH_TOKENS = 2048


def response_nll(
    decoder: Decoder,
    examples: Sequence[Example],
    on_rows: Callable[[Sequence[int], np.ndarray], None] | None = None,
) -> np.ndarray:
    """Compute the negative log-likelihood of each example's response, end-of-text included.

    Args:
        decoder: the model.
        examples: tokenised rows.
        on_rows: called after each batch with the numbers of its examples and their sums.

    Returns:
        [examples], float64, in nats; up to rounding, the batching does not change it.
    """

    def on_batch(numbers: Sequence[int], losses: np.ndarray) -> None:
        if on_rows:
            on_rows(numbers, losses[:, 0])

    return response_losses(decoder, examples, on_batch)[:, 0]


@torch.no_grad()
def response_losses(
    decoder: Decoder,
    examples: Sequence[Example],
    on_rows: Callable[[Sequence[int], np.ndarray], None] | None = None,
) -> np.ndarray:
    """Compute `response_nll`, and the part of it that is the last token's: [examples, 2].

    A model that has only learned when to stop gains nothing but in that token.
    """
    lengths = [input_length(example) for example in examples]
    # Examples of similar length share a batch, so that one attention call serves all of them.
    order = sorted(range(len(examples)), key=lengths.__getitem__)
    losses = np.zeros((len(examples), 2))
    for group in batch_in_order(lengths, order, BATCH_TOKENS):
        batch = pack([examples[number] for number in group]).to(decoder.head_weight.device)
        nll = target_nll(decoder, batch).double()
        sums = torch.zeros(len(group), 2, dtype=torch.float64, device=nll.device)
        sums[:, 0].index_add_(0, batch.example_index, nll)
        is_last = torch.ones_like(batch.example_index, dtype=torch.bool)
        is_last[:-1] = batch.example_index[1:] != batch.example_index[:-1]
        sums[batch.example_index[is_last], 1] = nll[is_last]
        losses[group] = sums.cpu().numpy()
        if on_rows:
            on_rows(group, losses[group])
    return losses


def count_targets(examples: Sequence[Example]) -> np.ndarray:
    """Count the predicted response tokens of each example: all, except the first if the prompt is empty."""
    return np.array([max(len(example.learned) - (not example.prompt), 0) for example in examples])


def compute_likelihood_means(
    nll: np.ndarray, targets: np.ndarray, response_bytes: np.ndarray
) -> dict[str, float]:
    """Return the mean loss in nats a token, as perplexity and in bits a byte.

    Each is one global sum divided by one global count, never a mean of the rows' means.
    """
    return {
        **compute_token_means(nll, targets),
        "bits_per_byte": float(nll.sum() / math.log(2) / response_bytes.sum()),
    }


def find_ends(examples: Sequence[Example], end_ids: Collection[int]) -> np.ndarray:
    """Return 1 for each example whose last target is an end token, which it is not where it was cut."""
    return np.array(
        [int(len(one.response) > 0 and one.response[-1] in end_ids) for one in examples], dtype=int
    )


def compute_token_means(nll: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Return the mean loss in nats a token and as perplexity, and the number of target tokens."""
    mean = nll.sum() / targets.sum()
    return {"nll": float(mean), "perplexity": math.exp(min(mean, 700)), "target_tokens": int(targets.sum())}
