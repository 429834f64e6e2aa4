"""Reference ops: the formulas as they are written, with derivatives by autograd; slower, and obviously right.

Tests compare the fast ops with these, and benchmarks measure how much faster those are:

    with use_reference("linear", "elementwise"):
        train_step(...)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Op = Literal["attention", "elementwise", "linear", "nll"]
_in_use: set[Op] = set()


@contextmanager
def use_reference(*ops: Op) -> Iterator[None]:
    """Compute these ops by their plain forms within the context, in all threads of the process."""
    previous = set(_in_use)
    _in_use.update(ops)
    try:
        yield
    finally:
        _in_use.intersection_update(previous)


def uses_reference(op: Op) -> bool:
    return op in _in_use


def attention(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """Return softmax(q kᵀ / √head_dim) v, causal, each document on its own.

    Args:
        q: queries, [tokens, heads, head_dim].
        k: keys, [tokens, kv_heads, head_dim]; heads share keys in groups.
        v: values, like the keys.
        lengths: the documents' tokens, which add up to those of the batch.

    Returns:
        In the shape of q.
    """
    # split, not slices: its backward pass joins the gradients once, a slice's would fill a whole zero tensor
    # for each.
    documents = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
    return torch.cat([_causal_attention(*document) for document in documents])


def _causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    is_grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=is_grouped)[0].transpose(0, 1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / √(mean(x²) + eps) · weight, over the last dimension, in the weight's precision."""
    x = x.to(weight.dtype)
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (i, i + head_dim / 2) of x [tokens, heads, head_dim] by its angle."""
    first, second = x.to(cos.dtype).chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def lora_linear(
    h: Tensor, weight: Tensor, bias: Tensor | None, *, A: Tensor, B: Tensor, scale: float, dropout: float
) -> Tensor:
    """Return h Wᵀ + b + dropout(h) Aᵀ (s B)ᵀ in the precision of h.

    Args:
        h: [tokens, in].
        weight: W, [out, in].
        bias: b, [out].
        A: [rank, in]; may be more precise than h, as B.
        B: [out, rank].
        scale: s.
        dropout: the probability with which an element of the adapter's input is dropped.
    """
    low_rank = F.linear(F.dropout(h, dropout), A.to(h.dtype))
    return F.linear(h, weight, bias) + F.linear(low_rank, B.to(h.dtype) * scale)


def token_nll(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each target, [targets], over a matrix of all logits."""
    return F.cross_entropy((hidden.to(head.dtype) @ head.t()).float(), targets, reduction="none")
