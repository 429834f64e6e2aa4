"""Handwritten backward passes equal autograd."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from loratune.models.decoder import ACTIVATIONS
from loratune.models.lora import Lora, LoraLinear
from loratune.models.ops.elementwise import (
    LayerNorm,
    RMSNorm,
    apply_elementwise,
    identity,
    rotate,
    swiglu,
)
from loratune.models.ops.linear import apply_lora_linears

PLAIN = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}
SIZES = {"tokens": st.integers(1, 9), "seed": st.integers(0, 10_000)}
repeated = settings(max_examples=25, deadline=None)


def random(*shapes: tuple[int, ...], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes
    ]


def assert_same(ours: torch.Tensor, plain: torch.Tensor, inputs: list[torch.Tensor]) -> None:
    assert torch.allclose(ours, plain)
    upstream = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1), dtype=plain.dtype)
    for one, other in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(plain, inputs, upstream), strict=True
    ):
        assert torch.allclose(one, other)


@repeated
@given(**SIZES)
def test_rms_norm(tokens, seed):
    x, weight = random((tokens, 3, 8), (8,), seed=seed)
    norm = RMSNorm(8, 1e-5)
    norm.weight = torch.nn.Parameter(weight.detach(), requires_grad=False)
    assert_same(norm(x), F.rms_norm(x, (8,), weight, 1e-5), [x])


@repeated
@given(**SIZES)
def test_rms_norm_of_bf16_is_computed_in_the_weights_precision(tokens, seed):
    """Queries and keys are bf16 where the products are; the norm's own weight is fp32."""
    exact, weight = random((tokens, 3, 8), (8,), seed=seed)
    x = exact.detach().bfloat16().requires_grad_()
    norm = RMSNorm(8, 1e-5)
    norm.weight = torch.nn.Parameter(weight.detach().float(), requires_grad=False)
    y, wide = norm(x), x.detach().double().requires_grad_()
    plain = F.rms_norm(wide, (8,), norm.weight.double(), 1e-5)
    assert y.dtype == torch.float32 and torch.allclose(y.double(), plain, rtol=1e-6, atol=1e-6)
    upstream = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1))
    (dx,) = torch.autograd.grad(y, x, upstream)
    (expected,) = torch.autograd.grad(plain, wide, upstream.double())
    assert dx.dtype == torch.bfloat16 and torch.allclose(dx.double(), expected, rtol=2**-8, atol=1e-5)


@repeated
@given(**SIZES)
def test_layer_norm(tokens, seed):
    x, weight, bias = random((tokens, 8), (8,), (8,), seed=seed)
    norm = LayerNorm(8, 1e-5).requires_grad_(False)
    norm.weight.data, norm.bias.data = weight.detach(), bias.detach()
    assert_same(norm(x), F.layer_norm(x, (8,), weight, bias, 1e-5), [x])


@repeated
@given(**SIZES)
def test_swiglu(tokens, seed):
    gate, up = random((tokens, 8), (tokens, 8), seed=seed)
    assert_same(apply_elementwise(swiglu, gate, up), F.silu(gate) * up, [gate, up])


@pytest.mark.parametrize("name", ACTIVATIONS)
@repeated
@given(**SIZES)
def test_activations(name, tokens, seed):
    (x,) = random((tokens, 8), seed=seed)
    assert_same(apply_elementwise(ACTIVATIONS[name], x), PLAIN[name](x), [x])


@repeated
@given(**SIZES)
def test_rotation_equals_complex_multiplication(tokens, seed):
    x, angles = random((tokens, 2, 8), (tokens, 1, 4), seed=seed)
    first, second = x.chunk(2, -1)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    assert_same(
        rotate(x, angles.cos().detach(), angles.sin().detach()),
        torch.cat([turned.real, turned.imag], -1),
        [x],
    )


def linear(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    A: torch.Tensor | None = None,
    B: torch.Tensor | None = None,
):
    layer = LoraLinear(weight.shape[1], weight.shape[0], bias is not None).double()
    layer.weight.data = weight.detach()
    if bias is not None:
        layer.bias.data = bias.detach()
    if A is not None:
        layer.lora = Lora(weight.shape[1], weight.shape[0], rank=2, alpha=3.0, dropout=0.0)
        layer.lora.A, layer.lora.B = (torch.nn.Parameter(matrix.detach()) for matrix in (A, B))
    return layer


@repeated
@given(**SIZES, bias=st.booleans(), operation=st.sampled_from([identity, ACTIVATIONS["gelu"]]))
def test_layers_with_shared_input_equal_plain_lora(tokens, seed, bias, operation):
    x, weight, other, b, *matrices = random(
        (tokens, 6), (5, 6), (4, 6), (5,), (2, 6), (5, 2), (3, 6), (5, 3), seed=seed
    )
    b = b if bias else None
    layers = [
        linear(weight, b, *matrices[:2]),
        linear(other, None),
        linear(weight, None, *matrices[2:]),
    ]  # ranks 2 and 3
    ours = torch.cat(apply_lora_linears(layers, operation, x), -1)
    matrices = [matrix for layer in layers if layer.lora for matrix in (layer.lora.A, layer.lora.B)]
    h = x if operation is identity else F.gelu(x)
    weights = [
        layer.weight + 1.5 * layer.lora.B @ layer.lora.A if layer.lora else layer.weight for layer in layers
    ]
    plain = torch.cat([F.linear(h, w, layer.bias) for w, layer in zip(weights, layers, strict=True)], -1)
    assert_same(ours, plain, [x, *matrices])


def test_no_gradient_is_computed_below_the_lowest_adapter():
    x, weight, A, B = random((4, 6), (5, 6), (2, 6), (5, 2), seed=0)

    def products(below_is_trained: bool) -> int:
        (y,) = apply_lora_linears(
            [linear(weight, None, A, B)], identity, x.detach().requires_grad_(below_is_trained)
        )
        with FlopCounterMode(display=False) as counter:
            y.sum().backward()
        return counter.get_total_flops()

    assert products(True) - products(False) == 2 * 4 * 6 * 5  # dy W; the counter overlooks products in place


def test_cheap_activations_are_recomputed_not_stored():
    gate, up, weight, A, B = random((4, 6), (4, 6), (5, 6), (2, 6), (5, 2), seed=0)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        apply_lora_linears([linear(weight, None, A, B)], swiglu, gate, up)
    assert [tuple(x.shape) for x in kept] == [
        (4, 6),
        (4, 6),
        (2, 6),
        (4, 2),
        (5, 2),
    ]  # gate, up; A, the thin product, B
