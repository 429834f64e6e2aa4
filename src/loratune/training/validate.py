"""The validation loss: one global sum divided by one global count, whatever the batches are."""

from collections.abc import Sequence

import torch

from loratune.models.ops.nll import target_nll


def compute_validation_nll(decoder, batches: Sequence) -> float:
    """Mean negative log-likelihood of all target tokens, in nats."""
    was_training = decoder.training
    decoder.eval()
    total = sum(target_nll(decoder, batch).sum(dtype=torch.float64).item() for batch in batches)
    decoder.train(was_training)
    return total / sum(len(batch.targets) for batch in batches)
