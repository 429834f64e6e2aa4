"""How likely the decoder finds the target tokens, in one pass over the vocabulary.

No [targets, vocabulary] matrix ever exists: the logits of a block of the vocabulary are made, used and let
go, while they are still in the processor's cache. What was summed up is scaled down whenever a block has a
higher logit than all before (Milakov & Gimelshein 2018, "Online normalizer calculation for softmax",
algorithm 3; arXiv:1805.02867).
"""

import math

import torch
from torch import Tensor

from loratune.models.decoder import VOCAB_BLOCK_SIZE
from loratune.models.ops.attention import packed_attention


@torch.no_grad()
def target_nll(decoder, batch) -> Tensor:
    """Negative log-likelihood of each target token of a packed batch, [targets], in nats, fp32."""
    hidden = decoder(
        batch.input_ids, batch.position_ids, packed_attention(batch.lengths), output_index=batch.target_index
    )
    return token_nll(hidden, decoder.head_weight, batch.targets)


def token_nll(hidden: Tensor, head: Tensor, targets: Tensor, gradient: Tensor | None = None) -> Tensor:
    """hidden [targets, width] in fp32, head [vocabulary, width], targets [targets] to [targets], in nats,
    fp32.

    `gradient`, zeros in the shape of hidden, is filled with the derivative of their sum, (softmax(h Wᵀ) -
    onehot) W: the head is frozen, so that is all that a backward pass needs.
    """
    h, target = hidden.to(head.dtype), targets.unsqueeze(1)
    highest = hidden.new_full((len(hidden), 1), -math.inf)
    total, of_target = torch.zeros_like(highest), torch.zeros_like(highest)
    for first, words in enumerate(head.split(VOCAB_BLOCK_SIZE)):
        logits = (h @ words.t()).float()
        place = target - first * VOCAB_BLOCK_SIZE
        is_here = (place >= 0) & (place < len(words))
        of_target = torch.where(is_here, logits.gather(1, place.clamp(0, len(words) - 1)), of_target)
        before, highest = highest, torch.maximum(highest, logits.amax(1, keepdim=True))
        shrink = (before - highest).exp_()
        odds = logits.sub_(highest).exp_()
        total.mul_(shrink).add_(odds.sum(1, keepdim=True))
        if gradient is not None:
            gradient.mul_(shrink).add_(odds.to(head.dtype) @ words)
    if gradient is not None:
        gradient.div_(total).sub_(head[targets])
    return (highest + total.log() - of_target).squeeze(1)
