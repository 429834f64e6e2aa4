"""Elementwise ops with handwritten derivatives: fewer passes over memory, and less stored, than autograd.

Each operation takes its inputs and returns its value and its vjp (vector-Jacobian product): a function from
the value's gradient to the inputs' gradients. Only the inputs are stored; the value is recomputed from them.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from loratune.models.ops import reference
from loratune.models.ops.reference import uses_reference

aten = torch.ops.aten
Vjp = Callable[[Tensor], tuple[Tensor, ...]]
ElementwiseOp = Callable[..., tuple[Tensor, Vjp]]


def apply_elementwise(operation: ElementwiseOp, *inputs: Tensor) -> Tensor:
    """Return the value of an operation, differentiable."""
    if uses_reference("elementwise"):
        return operation(*inputs)[0]
    return ElementwiseFunction.apply(operation, *inputs)  # pyright: ignore[reportReturnType]


class ElementwiseFunction(torch.autograd.Function):
    """One operation for autograd."""

    @staticmethod
    def forward(ctx: Any, operation: ElementwiseOp, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.operation = operation
        return operation(*inputs)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.operation(*ctx.saved_tensors)[1](*grad_outputs)


class RMSNorm(nn.Module):
    """RMSNorm: x / √(mean(x²) + eps) · weight, over the last dimension.

    Zhang & Sennrich 2019, equation 4; arXiv:1910.07467.
    """

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def elementwise_op(self, x: Tensor) -> tuple[Tensor, Vjp]:
        """Compute in the weight's precision, fp32; x may be bf16, as queries and keys are."""
        if uses_reference("elementwise"):
            return reference.rms_norm(x, self.weight, self.eps), no_vjp
        input_dtype = x.dtype
        x = x.to(self.weight.dtype)
        # vector_norm is one pass without a temporary square of x.
        inverse = (
            torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            .square_()
            .div_(x.shape[-1])
            .add_(self.eps)
            .rsqrt_()
        )

        def vjp(dy: Tensor) -> tuple[Tensor]:
            dx = dy * self.weight
            projection = torch.linalg.vecdot(dx, x).unsqueeze(-1).mul_(inverse**3 / x.shape[-1])
            return (dx.mul_(inverse).addcmul_(x, projection, value=-1).to(input_dtype),)

        return (x * inverse).mul_(self.weight), vjp

    def forward(self, x: Tensor) -> Tensor:
        return apply_elementwise(self.elementwise_op, x)


class LayerNorm(nn.LayerNorm):
    """LayerNorm: (x - mean) / √(variance + eps) · weight + bias, over the last dimension.

    Ba et al. 2016; arXiv:1607.06450.
    """

    def elementwise_op(self, x: Tensor) -> tuple[Tensor, Vjp]:
        shape, weight, bias = list(self.normalized_shape), self.weight, self.bias
        y, mean, inverse = torch.native_layer_norm(x, shape, weight, bias, self.eps)

        def vjp(dy: Tensor) -> tuple[Tensor]:
            only_x = [True, False, False]
            return (aten.native_layer_norm_backward(dy, x, shape, mean, inverse, weight, bias, only_x)[0],)

        return y, vjp

    def forward(self, x: Tensor) -> Tensor:
        return apply_elementwise(self.elementwise_op, x)


def no_vjp(dy: Tensor) -> tuple[Tensor, ...]:
    """Stand in for the derivative of a value that autograd differentiates."""
    raise AssertionError("a reference op is differentiated by autograd")


def identity(x: Tensor) -> tuple[Tensor, Vjp]:
    return x, lambda dy: (dy,)


def swiglu(gate: Tensor, up: Tensor) -> tuple[Tensor, Vjp]:
    """silu(gate) · up (Shazeer 2020, equation 5; arXiv:2002.05202)."""
    activated = F.silu(gate)
    return activated * up, lambda dy: (aten.silu_backward(dy * up, gate), activated.mul_(dy))


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


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair of dimensions (i, i + head_dim / 2) by its angle (Su et al. 2021; arXiv:2104.09864).

    Args:
        x: queries or keys, [tokens, heads, head_dim].
        cos: of the angles, [tokens, 1, head_dim / 2].
        sin: of the angles, in the same shape.

    Returns:
        In the shape of x and the precision of the angles.
    """
    if uses_reference("elementwise"):
        return reference.rotate(x, cos, sin)
    return RotaryFunction.apply(x, cos, sin)  # pyright: ignore[reportReturnType]


class RotaryFunction(torch.autograd.Function):
    """`rotate` for autograd: the gradient is rotated back by the same angle, and x is not stored."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x.dtype
        return apply_rotary(x.to(cos.dtype), cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return apply_rotary(grad_outputs[0], cos, -sin).to(ctx.dtype), None, None


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    rotated = torch.empty_like(x)
    new_first, new_second = rotated.chunk(2, -1)
    torch.mul(first, cos, out=new_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=new_second).addcmul_(first, sin)
    return rotated
