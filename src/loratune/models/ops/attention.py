"""Causal attention over packed documents, none of which sees another.

Three documents of 2, 3 and 1 tokens; rows are queries, columns keys:

            a a b b b c
          a ■ · · · · ·
          a ■ ■ · · · ·
          b · · ■ · · ·
          b · · ■ ■ · ·
          b · · ■ ■ ■ ·
          c · · · · · ■

The empty part is not masked but never computed: each document is computed by calls of its own.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from loratune.models.ops import reference
from loratune.models.ops.reference import uses_reference
from loratune.models.ops.threads import map_in_parallel

# (number of the layer, queries, keys, values) -> outputs. All are [tokens, heads, head_dim], keys and values
# with kv_heads; rotated queries and keys are fp32, whatever the values are.
AttentionFn = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def packed_attention(lengths: list[int]) -> AttentionFn:
    """Return causal attention inside each document.

    Args:
        lengths: the documents' tokens, which add up to those of the batch.

    Returns:
        What a decoder takes as `attend`, for one batch.
    """
    blocks = list(split_into_blocks(lengths))

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.device.type != "cpu" or uses_reference("attention"):
            return reference.attention(q.to(v.dtype), k.to(v.dtype), v, lengths)
        # In bf16 the backward pass of a CPU takes twice as long for rows up to 128 tokens, and as long for
        # 256.
        return BlockAttention.apply(  # pyright: ignore[reportReturnType]
            q.float(), k.float(), v.float(), blocks
        )

    return attend


@dataclass(frozen=True)
class AttentionBlock:
    """Some queries of a document and the keys that they see: from its first token to the last query."""

    key_slice: slice  # of the batch's tokens
    query_slice: slice  # of the batch's tokens
    is_last: bool  # in its document: the keys are all of it
    # [queries, keys], 0 or -inf; None for a document's first block, which is simply causal.
    mask: Tensor | None


flash_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
QUERY_BLOCK_SIZE = 96  # queries in a block, more or less: the blocks of a document are equal


def split_into_blocks(lengths: list[int]) -> Iterator[AttentionBlock]:
    """Yield the blocks of all documents, a document's last block first.

    Up to 512 tokens torch's kernel for the CPU computes the half above the diagonal, too; blocks leave most
    of it out.
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
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocks: list[AttentionBlock]) -> Tensor:
        """Return the outputs in the shape of q, [tokens, heads, head_dim]; k and v have kv_heads; fp32."""
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
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (dout,) = grad_outputs
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
    """Transpose [tokens, heads, head_dim] to [1, heads, tokens, head_dim]."""
    return x.transpose(0, 1).unsqueeze(0)


def to_tokens_first(x: Tensor) -> Tensor:
    """Transpose [1, heads, tokens, head_dim] to [tokens, heads, head_dim]."""
    return x[0].transpose(0, 1)
