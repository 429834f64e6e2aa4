"""The negative log-likelihood of each target token, in one pass over the vocabulary, with its derivative.

No [targets, vocabulary] matrix ever exists: the logits of a block of the vocabulary are computed, used and
released while they are still in the processor's cache. The running sums are scaled down whenever a block has
a higher logit than all before it (Milakov & Gimelshein 2018, "Online normalizer calculation for softmax",
algorithm 3; arXiv:1805.02867).
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from loratune.models.ops import reference
from loratune.models.ops.reference import uses_reference

# Vocabulary entries in one product: with all of them, MKL is slow on AVX2.
VOCAB_BLOCK_SIZE = 1024


def token_nll(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log-likelihood of each target, differentiable with respect to `hidden`.

    The gradient is formed in the forward pass, where the logits are. Each target has a hidden state of its
    own, so that a backward pass with any weights of the targets only scales the gradient's rows.

    Args:
        hidden: normalised hidden states, [targets, hidden_size], fp32.
        head: the frozen LM head, [vocabulary, hidden_size], in the precision in which it is multiplied.
        targets: token ids, [targets].

    Returns:
        [targets], in nats, fp32.
    """
    if uses_reference("nll"):
        return reference.token_nll(hidden, head, targets)
    return TokenNll.apply(hidden, head, targets)  # pyright: ignore[reportReturnType]


class TokenNll(torch.autograd.Function):
    """`token_nll` for autograd."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        gradient = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        nll = compute_nll(hidden, head, targets, gradient=gradient)
        ctx.save_for_backward(gradient)
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        """`grad_outputs` is the weight of each target in what is minimised, [targets]."""
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0].unsqueeze(1), None, None


def compute_nll(hidden: Tensor, head: Tensor, targets: Tensor, *, gradient: Tensor | None) -> Tensor:
    """Return `token_nll`, and fill `gradient`, zeros in the shape of `hidden`, with its derivative.

    The derivative is (softmax(h Wᵀ) - onehot) W. The head W is frozen and gets none.
    """
    h, target = hidden.to(head.dtype), targets.unsqueeze(1)
    highest = hidden.new_full((len(hidden), 1), -math.inf)
    total, target_logit = torch.zeros_like(highest), torch.zeros_like(highest)
    for number, block in enumerate(head.split(VOCAB_BLOCK_SIZE)):
        logits = (h @ block.t()).float()
        position = target - number * VOCAB_BLOCK_SIZE
        is_here = (position >= 0) & (position < len(block))
        target_logit = torch.where(is_here, logits.gather(1, position.clamp(0, len(block) - 1)), target_logit)
        previous, highest = highest, torch.maximum(highest, logits.amax(1, keepdim=True))
        shrink = (previous - highest).exp_()
        exponentials = logits.sub_(highest).exp_()
        total.mul_(shrink).add_(exponentials.sum(1, keepdim=True))
        if gradient is not None:
            gradient.mul_(shrink).add_(exponentials.to(head.dtype) @ block)
    if gradient is not None:
        gradient.div_(total).sub_(head[targets])
    return (highest + total.log() - target_logit).squeeze(1)
