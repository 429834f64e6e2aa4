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

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from loratune.models.ops.threads import map_in_parallel

# (number of the layer, queries, keys, values) -> outputs; all are [tokens, heads, head_dim], keys and values
# with kv_heads; queries and keys that were rotated are fp32, whatever the values are
AttentionFn = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def packed_attention(lengths: list[int]) -> AttentionFn:
    """Attention inside each document; `lengths` are the documents' tokens and add up to the tokens of the
    batch.
    """
    blocks = list(split_into_blocks(lengths))

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.device.type == "cpu":
            # In bf16 the backward pass of a CPU takes twice as long for rows up to 128 tokens, and as long
            # for 256.
            return BlockAttention.apply(q.float(), k.float(), v.float(), blocks)
        q, k = q.to(v.dtype), k.to(v.dtype)
        # split, not slices: its backward pass joins the gradients once, a slice's would fill a whole zero
        # tensor each.
        documents = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
        return torch.cat([causal_attention(*document) for document in documents])

    return attend


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √head_dim) v of one document, [tokens, heads, head_dim]; heads share keys in groups."""
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)[0].transpose(0, 1)


@dataclass(frozen=True)
class AttentionBlock:
    """Some queries of a document and the keys that they see: from its first token to the last of them."""

    key_slice: slice
    query_slice: slice
    is_last: bool  # of its document: `seen` is all of it
    mask: (
        Tensor | None
    )  # [asked, seen], 0 or -inf; None where the block is its document's beginning, and simply causal


flash_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
QUERY_BLOCK_SIZE = 96  # queries in a block, more or less: the blocks of a document are equal


def split_into_blocks(lengths: list[int]) -> Iterator[AttentionBlock]:
    """Torch's kernel for the CPU computes the half above the diagonal, too, up to 512 tokens; in blocks it is
    less.

    A document's last block comes first.
    """
    first = 0
    for length in lengths:
        size = math.ceil(length / max(1, round(length / QUERY_BLOCK_SIZE)))
        edges = [*range(0, length, size), length]
        for start, end in reversed(list(itertools.pairwise(edges))):
            mask = torch.full((end - start, end), -math.inf).triu_(start + 1) if start else None
            yield AttentionBlock(
                slice(first, first + end), slice(first + start, first + end), end == length, mask
            )
        first += length


class BlockAttention(torch.autograd.Function):
    """Causal attention of packed documents by the kernel that `scaled_dot_product_attention` calls on a CPU.

    FlashAttention-2: Dao 2023; arXiv:2307.08691.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, blocks: list[AttentionBlock]) -> Tensor:
        """q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim], fp32, to the shape of q."""
        out = torch.empty_like(q)

        def compute(block: AttentionBlock) -> Tensor:
            inputs = (q[block.query_slice], k[block.key_slice], v[block.key_slice])
            part, log_norm = flash_attention(
                *map(to_heads_first, inputs), is_causal=block.mask is None, attn_mask=block.mask
            )
            out[block.query_slice] = to_tokens_first(part)
            return log_norm

        ctx.save_for_backward(q, k, v, out, *map_in_parallel(compute, blocks))
        ctx.blocks = blocks
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout: Tensor):
        q, k, v, out, *log_norms = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)

        def compute(block: AttentionBlock, log_norm: Tensor) -> list[Tensor]:
            inputs = (
                dout[block.query_slice],
                q[block.query_slice],
                k[block.key_slice],
                v[block.key_slice],
                out[block.query_slice],
            )
            dq_part, *parts = flash_attention_backward(
                *map(to_heads_first, inputs), log_norm, 0.0, block.mask is None, attn_mask=block.mask
            )
            dq[block.query_slice] = to_tokens_first(dq_part)
            return parts

        # A document's blocks share its keys: their gradients are added here, in the same order in every run.
        for block, parts in zip(ctx.blocks, map_in_parallel(compute, ctx.blocks, log_norms), strict=True):
            for whole, part in zip(
                (dk[block.key_slice], dv[block.key_slice]), map(to_tokens_first, parts), strict=True
            ):
                whole.copy_(part) if block.is_last else whole.add_(part)
        return dq, dk, dv, None


def to_heads_first(x: Tensor) -> Tensor:
    """[tokens, heads, head_dim] to [1, heads, tokens, head_dim]"""
    return x.transpose(0, 1).unsqueeze(0)


def to_tokens_first(x: Tensor) -> Tensor:
    return x[0].transpose(0, 1)
