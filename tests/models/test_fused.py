"""The hand-written backward passes against autograd through the plain form."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from loratune.models.fused import RmsNorm, Rotate, SwiGlu
from loratune.models.lora import AdaptedLinear

SIZES = {"tokens": st.integers(1, 9), "seed": st.integers(0, 10_000)}


def random(*shapes: tuple[int, ...], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]


def assert_same(ours: torch.Tensor, plain: torch.Tensor, inputs: list[torch.Tensor]) -> None:
    assert torch.allclose(ours, plain)
    upstream = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1), dtype=plain.dtype)
    for one, other in zip(torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(plain, inputs, upstream), strict=True):
        assert torch.allclose(one, other)


@settings(max_examples=25, deadline=None)
@given(**SIZES)
def test_rms_norm(tokens, seed):
    x, weight = random((tokens, 3, 8), (8,), seed=seed)
    assert_same(RmsNorm.apply(x, weight, 1e-5), F.rms_norm(x, (8,), weight, 1e-5), [x])


@settings(max_examples=25, deadline=None)
@given(**SIZES)
def test_swiglu(tokens, seed):
    gate, up = random((tokens, 8), (tokens, 8), seed=seed)
    assert_same(SwiGlu.apply(gate, up), F.silu(gate) * up, [gate, up])


@settings(max_examples=25, deadline=None)
@given(**SIZES)
def test_rotation_is_a_product_of_complex_numbers(tokens, seed):
    x, angles = random((tokens, 2, 8), (tokens, 1, 4), seed=seed)
    first, second = x.chunk(2, -1)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    assert_same(Rotate.apply(x, angles.cos().detach(), angles.sin().detach()), torch.cat([turned.real, turned.imag], -1), [x])


@settings(max_examples=25, deadline=None)
@given(**SIZES, bias=st.booleans())
def test_adapted_linear(tokens, seed, bias):
    x, weight, b, A, B = random((tokens, 6), (5, 6), (5,), (2, 6), (5, 2), seed=seed)
    weight, b = weight.detach(), b.detach() if bias else None
    plain = F.linear(x, weight + 1.5 * B @ A, b)
    assert_same(AdaptedLinear.apply(x, weight, b, A, B, 1.5), plain, [x, A, B])


def test_nothing_is_computed_below_the_lowest_adapter():
    x, weight, A, B = random((4, 6), (5, 6), (2, 6), (5, 2), seed=0)

    def products(below_is_trained: bool) -> int:
        y = AdaptedLinear.apply(x.detach().requires_grad_(below_is_trained), weight.detach(), None, A, B, 1.0)
        with FlopCounterMode(display=False) as counter:
            y.sum().backward()
        return counter.get_total_flops()

    assert products(True) - products(False) == 2 * 4 * 6 * 5  # dy W; the counter overlooks products in place
