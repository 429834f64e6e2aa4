"""Block attention equals the plain formula for each document."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loratune.models.ops import attention
from loratune.models.ops.attention import packed_attention, split_into_blocks


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """The whole matrix with its mask, as the module's docstring draws it."""
    owner = torch.repeat_interleave(torch.tensor(lengths))
    seen = (owner[:, None] == owner[None, :]).tril()
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -math.inf).softmax(-1), v)


@pytest.mark.parametrize("block", [4, 96])
@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    grouped=st.booleans(),
    seed=st.integers(0, 999),
)
def test_value_and_gradients_equal_plain_attention(block, lengths, grouped, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(sum(lengths), heads, 8) for heads in (4, 2 if grouped else 4, 2 if grouped else 4)]
    q, k, v = (torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "QUERY_BLOCK_SIZE", block)
        ours, theirs = packed_attention(lengths)(0, q, k, v), plain(q, k, v, lengths)
    assert torch.allclose(ours, theirs, atol=1e-5)
    upstream = torch.randn(q.shape, generator=generator)
    for mine, yours in zip(
        torch.autograd.grad(ours, (q, k, v), upstream),
        torch.autograd.grad(theirs, (q, k, v), upstream),
        strict=True,
    ):
        assert torch.allclose(mine, yours, atol=1e-4)


def test_blocks_skip_most_of_the_masked_half_of_long_documents():
    pairs = sum(
        (block.query_slice.stop - block.query_slice.start) * (block.key_slice.stop - block.key_slice.start)
        for block in split_into_blocks([570])
    )
    assert pairs == 95 * 95 * (
        1 + 2 + 3 + 4 + 5 + 6
    )  # six blocks of 95 queries, the first with 95 keys, the last with all 570
