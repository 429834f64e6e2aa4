"""How likely a model finds the wanted responses: sums for each row, so that any mean can be formed of
them.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from loratune.data.example import Example
from loratune.data.packing import batch_in_order, input_length, pack
from loratune.models.decoder import Decoder
from loratune.training.objective import target_nll

BATCH_TOKENS = 2048


@torch.no_grad()
def response_nll(
    decoder: Decoder,
    examples: Sequence[Example],
    on_rows: Callable[[Sequence[int], np.ndarray], None] | None = None,
) -> np.ndarray:
    """The negative log-likelihood of each row's response, end-of-text included, in nats, [rows].

    `on_rows(numbers, nll)` is told after each batch which rows it had. The result does not depend on how rows
    share batches, up to rounding.
    """
    lengths = [input_length(row) for row in examples]
    # Rows of similar length share a batch, so that its documents' attention can be computed alike.
    order = sorted(range(len(examples)), key=lengths.__getitem__)
    sums = np.zeros(len(examples))
    for group in batch_in_order(lengths, order, BATCH_TOKENS):
        batch = pack([examples[row] for row in group]).to(decoder.head_weight.device)
        of_targets = target_nll(decoder, batch).double()
        of_rows = torch.zeros(len(group), dtype=torch.float64, device=of_targets.device)
        sums[group] = of_rows.index_add(0, batch.example_index, of_targets).cpu().numpy()
        if on_rows:
            on_rows(group, sums[group])
    return sums


def count_targets(examples: Sequence[Example]) -> np.ndarray:
    """The response tokens of each row that are predicted: all, save the first where no prompt stands before
    it.
    """
    return np.array([max(len(row.response) - (not row.prompt), 0) for row in examples])


def compute_likelihood_means(
    nll: np.ndarray, targets: np.ndarray, response_bytes: np.ndarray
) -> dict[str, float]:
    """One global sum divided by one global count, in the three usual units."""
    return {
        **compute_token_means(nll, targets),
        "bits_per_byte": float(nll.sum() / math.log(2) / response_bytes.sum()),
    }


def compute_token_means(nll: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """The units that need no count of bytes."""
    mean = nll.sum() / targets.sum()
    return {"nll": float(mean), "perplexity": math.exp(min(mean, 700)), "target_tokens": int(targets.sum())}
