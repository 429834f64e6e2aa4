"""LoRA: a frozen linear layer plus a trained product of two thin matrices.

y = x Wᵀ + b + s dropout(x) Aᵀ Bᵀ,  s = alpha / rank        (Hu et al. 2021, "LoRA", equation 3; arXiv:2106.09685)

A is [rank, in] and random, B is [out, rank] and zero at first, so that training starts at the base model.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from loratune.errors import UserError
from loratune.models.names import LAYER


class Lora(nn.Module):
    def __init__(self, width_in: int, width_out: int, rank: int, alpha: float, dropout: float):
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, width_in))
        self.B = nn.Parameter(torch.zeros(width_out, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.scale = alpha / rank
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """The adapter's own part of y, with dropout."""
        x = F.dropout(x, self.dropout, self.training)
        return F.linear(F.linear(x, self.A.to(x.dtype)), self.B.to(x.dtype) * self.scale)


class AdaptedLinear(torch.autograd.Function):
    """The whole layer without dropout: only x is kept, and the adapter's parts are added where the large products lie.

    y = x Wᵀ + b + s (x Aᵀ) Bᵀ      dx = dy W + s (dy B) A      dA = s (dy B)ᵀ x      dB = s dyᵀ (x Aᵀ)

    W and b are frozen and get no gradient; dx is left out where nothing below is trained.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
        """x [tokens, in], weight [out, in], A [rank, in], B [out, rank] to [tokens, out]; A and B may be more precise."""
        ctx.save_for_backward(x, weight, A, B)
        ctx.scale = scale
        thin = x @ A.to(x.dtype).t()
        return F.linear(x, weight, bias).addmm_(thin, B.to(x.dtype).t(), alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        x, weight, A, B = ctx.saved_tensors
        a = A.to(x.dtype)
        thin, thin_dy = (x @ a.t()).mul_(ctx.scale), (dy @ B.to(x.dtype)).mul_(ctx.scale)
        dA, dB = thin_dy.t() @ x, (thin.t() @ dy).t()
        dx = (dy @ weight).addmm_(thin_dy, a) if ctx.needs_input_grad[0] else None
        return dx, None, None, dA.to(A.dtype), dB.to(B.dtype), None


class Linear(nn.Module):
    """A frozen linear layer, [tokens, in] to [tokens, out], computed in its weight's precision, with an adapter or not."""

    def __init__(self, width_in: int, width_out: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_out, width_in), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(width_out), requires_grad=False) if bias else None
        self.lora: Lora | None = None
        self.adapted = True

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        if self.lora is None or not self.adapted:
            return F.linear(x, self.weight, self.bias)
        if self.lora.dropout and self.training:
            return F.linear(x, self.weight, self.bias) + self.lora(x)
        return AdaptedLinear.apply(x, self.weight, self.bias, self.lora.A, self.lora.B, self.lora.scale)


def linears(decoder: nn.Module) -> Iterator[tuple[str, Linear]]:
    """The layers that can be adapted, by name: those inside the decoder's blocks, never the embedding or the head."""
    return ((name, module) for name, module in decoder.named_modules() if isinstance(module, Linear))


def add_lora(decoder, rank: int, alpha: float, dropout: float, targets: list[str], seed: int = 0) -> list[str]:
    """Put an adapter on the target layers. Returns their names. The first A is a function of the seed alone.

    Raises UserError for a target that the model does not have.
    """
    chosen = resolve_targets(targets, decoder.spec.architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = []
        for name, linear in linears(decoder):
            if name.split(".", 2)[2] in chosen:
                width_out, width_in = linear.weight.shape
                linear.lora = Lora(width_in, width_out, rank, alpha, dropout).to(linear.weight.device)
                adapted.append(name)
    return adapted


def resolve_targets(targets: list[str], architecture: str) -> set[str]:
    """`all`, `attention`, `mlp`, or the model's own names (`q_proj`, `mlp.c_fc`) to our names inside a layer."""
    known = {ours: theirs for ours, theirs in LAYER[architecture].items() if not ours.endswith("norm")}
    chosen: set[str] = set()
    unknown = []
    for target in targets:
        matches = {ours for ours, theirs in known.items() if _matches(target, ours, theirs)}
        chosen |= matches
        if not matches:
            unknown.append(target)
    if unknown:
        raise UserError(
            f"--targets: this model has no {', '.join(unknown)}; choose from all, attention, mlp, {', '.join(known.values())}"
        )
    return chosen


def _matches(target: str, ours: str, theirs: str) -> bool:
    return target in ("all", ours.split(".")[0], ours) or theirs == target or theirs.endswith("." + target)


def trained_parameters(decoder) -> list[nn.Parameter]:
    return [
        parameter for _, linear in linears(decoder) if linear.lora is not None for parameter in (linear.lora.A, linear.lora.B)
    ]


@contextmanager
def without_adapter(decoder):
    """The base model's own answers, from the same weights in memory."""
    layers = [linear for _, linear in linears(decoder)]
    for linear in layers:
        linear.adapted = False
    try:
        yield decoder
    finally:
        for linear in layers:
            linear.adapted = True
