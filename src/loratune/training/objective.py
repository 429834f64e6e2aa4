"""Objective: what training minimises; it turns examples into a batch and a batch into losses."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from loratune.data.example import Example
from loratune.data.packing import Batch, pack
from loratune.models.decoder import Decoder
from loratune.models.ops.attention import packed_attention
from loratune.models.ops.nll import token_nll


class Objective(Protocol):
    """A loss summed over a step's batches, divided by a weight that is summed over them, too.

    Because of the two sums, instead of a mean for each batch, a step's gradient does not depend on how its
    examples are divided into micro-batches.
    """

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Return one batch of the examples, on the CPU."""
        ...

    def weight(self, batch: Batch) -> float:
        """Return what the batch adds to the divisor of its step, such as the number of its targets."""
        ...

    def losses(self, decoder: Decoder, batch: Batch) -> Tensor:
        """Return the batch's losses, differentiable, of any shape: their sum is divided by the weight."""
        ...


class ResponseNll:
    """The mean negative log-likelihood of the response tokens, in nats: ordinary supervised fine-tuning."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        return pack(examples)

    def weight(self, batch: Batch) -> float:
        return len(batch.targets)

    def losses(self, decoder: Decoder, batch: Batch) -> Tensor:
        return target_nll(decoder, batch)


def target_nll(decoder: Decoder, batch: Batch) -> Tensor:
    """Return the negative log-likelihood of each target token of a packed batch, [targets], in nats, fp32."""
    attend = packed_attention(batch.lengths)
    hidden = decoder(batch.input_ids, batch.position_ids, attend, output_index=batch.target_index)
    return token_nll(hidden, decoder.head_weight, batch.targets)
