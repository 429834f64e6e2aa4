"""Causal attention over documents that lie end to end, none of which sees another.

Three documents of 2, 3 and 1 tokens; rows ask, columns are seen:

            a a b b b c
          a ■ · · · · ·
          a ■ ■ · · · ·
          b · · ■ · · ·
          b · · ■ ■ · ·
          b · · ■ ■ ■ ·
          c · · · · · ■

The empty part is not masked but never computed: each document is a call of its own.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# (number of the layer, queries, keys, values) -> outputs; all are [tokens, heads, head_dim], keys and values with kv_heads
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def packed_attention(lengths: list[int]) -> Attend:
    """Attention inside each document; `lengths` are the documents' tokens and add up to the tokens of the batch."""

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        precision = q.dtype
        if q.device.type == "cpu":
            # In bf16 the backward pass of a CPU takes twice as long for rows up to 128 tokens, and as long for 256.
            q, k, v = q.float(), k.float(), v.float()
        # split, not slices: its backward pass joins the gradients once, a slice's would fill a whole zero tensor each.
        documents = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
        return torch.cat([causal_attention(*document) for document in documents]).to(precision)

    return attend


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √head_dim) v of one document, [tokens, heads, head_dim]; heads share keys in groups."""
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)[0].transpose(0, 1)
