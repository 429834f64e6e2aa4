"""Validation loss: one global sum divided by one global weight, independent of the batching."""

from collections.abc import Sequence

import torch

from loratune.data.packing import Batch
from loratune.models.decoder import Decoder
from loratune.training.objective import Objective


@torch.no_grad()
def compute_validation_loss(decoder: Decoder, batches: Sequence[Batch], objective: Objective) -> float:
    """Compute the objective over all batches, without dropout; in nats a token for ResponseNll."""
    was_training = decoder.training
    decoder.eval()
    total = sum(objective.losses(decoder, batch).sum(dtype=torch.float64).item() for batch in batches)
    decoder.train(was_training)
    return total / sum(objective.weight(batch) for batch in batches)
