"""Elementwise work with its derivative written out: fewer passes over memory, and less kept, than autograd
would make.

Each operation takes its inputs and returns its value and a function from the value's gradient to the inputs'
gradients (a vector-Jacobian product). Nothing but the inputs is needed to do that again, so nothing but the
inputs has to be kept.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

aten = torch.ops.aten
Vjp = Callable[[Tensor], tuple[Tensor, ...]]
ElementwiseOp = Callable[..., tuple[Tensor, Vjp]]


class ElementwiseFunction(torch.autograd.Function):
    """An operation by itself, for autograd: `Elementwise.apply(operation, *inputs)`."""

    @staticmethod
    def forward(ctx, operation: ElementwiseOp, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.operation = operation
        return operation(*inputs)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        return None, *ctx.operation(*ctx.saved_tensors)[1](dy)


class RMSNorm(nn.Module):
    """x / √(mean(x²) + eps) · weight, over the last dimension (Zhang & Sennrich 2019, equation 4;
    arXiv:1910.07467).
    """

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def elementwise_op(self, x: Tensor) -> tuple[Tensor, Vjp]:
        """Compute in the weight's precision, fp32, and return that; x may be bf16, as queries and keys
        are.
        """
        given = x.dtype
        x = x.to(self.weight.dtype)
        # The norm is one pass without a temporary square.
        inverse = (
            torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            .square_()
            .div_(x.shape[-1])
            .add_(self.eps)
            .rsqrt_()
        )

        def vjp(dy: Tensor) -> tuple[Tensor]:
            dx = dy * self.weight
            along = torch.linalg.vecdot(dx, x).unsqueeze(-1).mul_(inverse**3 / x.shape[-1])
            return (dx.mul_(inverse).addcmul_(x, along, value=-1).to(given),)

        return (x * inverse).mul_(self.weight), vjp

    def forward(self, x: Tensor) -> Tensor:
        return ElementwiseFunction.apply(self.elementwise_op, x)


class LayerNorm(nn.LayerNorm):
    """(x - mean) / √(variance + eps) · weight + bias, over the last dimension (Ba et al. 2016;
    arXiv:1607.06450).
    """

    def elementwise_op(self, x: Tensor) -> tuple[Tensor, Vjp]:
        shape, weight, bias = list(self.normalized_shape), self.weight, self.bias
        y, mean, inverse = torch.native_layer_norm(x, shape, weight, bias, self.eps)

        def vjp(dy: Tensor) -> tuple[Tensor]:
            only_x = [True, False, False]
            return (aten.native_layer_norm_backward(dy, x, shape, mean, inverse, weight, bias, only_x)[0],)

        return y, vjp

    def forward(self, x: Tensor) -> Tensor:
        return ElementwiseFunction.apply(self.elementwise_op, x)


def identity(x: Tensor) -> tuple[Tensor, Vjp]:
    return x, lambda dy: (dy,)


def swiglu(gate: Tensor, up: Tensor) -> tuple[Tensor, Vjp]:
    """silu(gate) · up (Shazeer 2020, equation 5; arXiv:2002.05202)."""
    opened = F.silu(gate)
    return opened * up, lambda dy: (aten.silu_backward(dy * up, gate), opened.mul_(dy))


def silu(x: Tensor) -> tuple[Tensor, Vjp]:
    return F.silu(x), lambda dy: (aten.silu_backward(dy, x),)


def gelu(x: Tensor, approximate: str = "none") -> tuple[Tensor, Vjp]:
    """Hendrycks & Gimpel 2016; arXiv:1606.08415."""
    return F.gelu(x, approximate=approximate), lambda dy: (
        aten.gelu_backward(dy, x, approximate=approximate),
    )


def gelu_tanh(x: Tensor) -> tuple[Tensor, Vjp]:
    return gelu(x, "tanh")


def relu(x: Tensor) -> tuple[Tensor, Vjp]:
    return F.relu(x), lambda dy: (aten.threshold_backward(dy, x, 0),)


class RotaryFunction(torch.autograd.Function):
    """Turn each pair of dimensions (i, i + head_dim / 2) of x [tokens, heads, head_dim] by its angle, in the
    angles' precision.

    cos and sin are [tokens, 1, head_dim / 2]. The gradient is turned back by the same angle; x itself is not
    needed for that.
    """

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x.dtype
        return apply_rotary(x.to(cos.dtype), cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        cos, sin = ctx.saved_tensors
        return apply_rotary(dy, cos, -sin).to(ctx.dtype), None, None


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    result = torch.empty_like(x)
    one, other = result.chunk(2, -1)
    torch.mul(first, cos, out=one).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=other).addcmul_(first, sin)
    return result
