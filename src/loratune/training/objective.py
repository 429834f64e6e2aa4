"""Cross-entropy of the target tokens, with its gradient formed in the forward pass."""

import torch
from torch import Tensor

from loratune.models.ops.nll import token_nll


class HeadCrossEntropy(torch.autograd.Function):
    """Sum of the targets' negative log-likelihoods, straight from the hidden states."""

    @staticmethod
    def forward(ctx, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        """hidden [targets, width], head [vocabulary, width], targets [targets] to a scalar, in nats, fp32."""
        gradient = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        nll = token_nll(hidden, head, targets, gradient)
        ctx.save_for_backward(gradient)
        return nll.sum()

    @staticmethod
    def backward(ctx, scale: Tensor):
        (gradient,) = ctx.saved_tensors
        return gradient * scale, None, None


def target_loss(decoder, batch, attend) -> Tensor:
    """Sum of the negative log-likelihoods of a packed batch's targets, in nats; divide by their number for
    the mean.
    """
    hidden = decoder(batch.input_ids, batch.position_ids, attend, output_index=batch.target_index)
    return HeadCrossEntropy.apply(hidden, decoder.head_weight, batch.targets)
