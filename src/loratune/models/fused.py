"""Elementwise work with backward passes written out: fewer passes over memory, and less kept, than autograd would make.

Each function computes what its plain form in the docstring does; the frozen weights get no gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

silu_backward = torch.ops.aten.silu_backward


class RmsNorm(torch.autograd.Function):
    """x / √(mean(x²) + eps) · weight, over the last dimension (Zhang & Sennrich 2019, equation 4; arXiv:1910.07467).

    Only x is kept, which the residual stream keeps anyway.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return (x * inverse_rms(x, eps)).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        x, weight = ctx.saved_tensors
        inverse = inverse_rms(x, ctx.eps)
        dx = dy * weight
        along = torch.linalg.vecdot(dx, x).unsqueeze(-1).mul_(inverse**3 / x.shape[-1])
        return dx.mul_(inverse).addcmul_(x, along, value=-1), None, None


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / √(mean(x²) + eps), [..., 1]; the norm is one pass without a temporary square."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()


class SwiGlu(torch.autograd.Function):
    """silu(gate) · up (Shazeer 2020, equation 5; arXiv:2002.05202)."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        gate, up = ctx.saved_tensors
        return silu_backward(dy * up, gate), F.silu(gate).mul_(dy)


class Rotate(torch.autograd.Function):
    """Turn each pair of dimensions (i, i + head_dim / 2) of x [tokens, heads, head_dim] by its angle.

    cos and sin are [tokens, 1, head_dim / 2]. The gradient is turned back by the same angle.
    """

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return turned(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        cos, sin = ctx.saved_tensors
        return turned(dy, cos, -sin), None, None


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    result = torch.empty_like(x)
    one, other = result.chunk(2, -1)
    torch.mul(first, cos, out=one).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=other).addcmul_(first, sin)
    return result
