"""How likely the decoder finds the responses, without gradients: for validation and evaluation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from loratune.models.attention import packed_attention

CHUNK = 256  # targets whose logits exist at the same time


@torch.no_grad()
def target_nll(decoder, batch) -> Tensor:
    """Negative log-likelihood of each target token of a packed batch, [targets], in nats, fp32."""
    hidden = decoder(batch.ids, batch.positions, packed_attention(batch.lengths), wanted=batch.target_index)
    chunks = zip(hidden.split(CHUNK), batch.targets.split(CHUNK), strict=True)
    return torch.cat([F.cross_entropy(decoder.logits(part).float(), targets, reduction="none") for part, targets in chunks])
