"""Cross-entropy of the target tokens without ever holding a [tokens, vocabulary] matrix."""

import torch
from torch import Tensor

CHUNK = 256  # targets whose logits exist at the same time


class HeadCrossEntropy(torch.autograd.Function):
    """Sum of the targets' negative log-likelihoods, straight from the hidden states.

    The head is frozen, so the gradient with respect to the hidden states, (softmax(h Wᵀ) - onehot) W, is all that the
    backward pass needs; it is formed chunk by chunk in the forward pass, while the logits are there.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        """hidden [targets, width], head [vocabulary, width], targets [targets] to a scalar, in nats, fp32."""
        total = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden)
        for h, wanted, slot in zip(hidden.split(CHUNK), targets.split(CHUNK), gradient.split(CHUNK), strict=True):
            logits = (h.to(head.dtype) @ head.t()).float()
            chosen = wanted.unsqueeze(1)
            # In place from here on: another matrix of this size costs more to get from the system than to compute with.
            logits.sub_(logits.amax(1, keepdim=True))
            target = logits.gather(1, chosen)
            norm = logits.exp_().sum(1, keepdim=True)
            total += (norm.log() - target).sum()
            probabilities = logits.div_(norm)
            probabilities.scatter_add_(1, chosen, torch.full_like(norm, -1.0))
            slot.copy_(probabilities.to(head.dtype) @ head)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, scale: Tensor):
        (gradient,) = ctx.saved_tensors
        return gradient * scale, None, None


def target_loss(decoder, batch, attend) -> Tensor:
    """Sum of the negative log-likelihoods of a packed batch's targets, in nats; divide by their number for the mean."""
    hidden = decoder(batch.ids, batch.positions, attend, wanted=batch.target_index)
    return HeadCrossEntropy.apply(hidden, decoder.head_weight, batch.targets)
