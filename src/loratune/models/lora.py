"""LoRA: a frozen linear layer plus a trained product of two thin matrices.

y = x Wᵀ + b + s dropout(x) Aᵀ Bᵀ,  s = alpha / rank        (Hu et al. 2021, "LoRA", equation 3;
arXiv:2106.09685)

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
from loratune.models.names import LAYER_MODULE_NAMES
from loratune.models.ops.elementwise import ElementwiseFunction, ElementwiseOp
from loratune.models.ops.prepacked import prepacked_linear


class Lora(nn.Module):
    def __init__(self, in_features: int, out_features: int, rank: int, alpha: float, dropout: float):
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, in_features))
        self.B = nn.Parameter(torch.zeros(out_features, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.alpha = alpha
        self.scale = alpha / rank
        self.dropout = dropout


class LoraLinear(nn.Module):
    """A frozen linear layer, [tokens, in] to [tokens, out], in its weight's precision; `feed` adds what its
    adapter does.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None
        self.lora: Lora | None = None
        self.adapter_enabled = True
        self.packed: Tensor | None = None  # in place of weight and adapter, while answers are written

    @property
    def active_lora(self) -> Lora | None:
        return self.lora if self.adapter_enabled else None

    @property
    def has_active_dropout(self) -> bool:
        return self.training and self.active_lora is not None and self.lora.dropout > 0

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is not None:
            return prepacked_linear(x, self.packed, self.bias)
        return F.linear(x, self.weight, self.bias)

    def forward_with_dropout(self, x: Tensor) -> Tensor:
        """y with dropout on the adapter's input; its derivative is left to autograd."""
        low_rank = F.linear(F.dropout(x, self.lora.dropout), self.lora.A.to(x.dtype))
        return F.linear(x, self.weight, self.bias) + F.linear(
            low_rank, self.lora.B.to(x.dtype) * self.lora.scale
        )


def apply_lora_linears(
    layers: list[LoraLinear], operation: ElementwiseOp, *inputs: Tensor
) -> tuple[Tensor, ...]:
    """The outputs of layers that share the input h = operation(*inputs), [tokens, in]."""
    if any(layer.has_active_dropout for layer in layers):
        h = ElementwiseFunction.apply(operation, *inputs).to(layers[0].weight.dtype)
        return tuple(
            layer.forward_with_dropout(h)
            if layer.has_active_dropout
            else forward_with_adapters([layer], h)[0][0]
            for layer in layers
        )
    if not torch.is_grad_enabled():
        return forward_with_adapters(layers, operation(*inputs)[0].to(layers[0].weight.dtype))[0]
    matrices = [matrix for layer in layers if layer.active_lora for matrix in (layer.lora.A, layer.lora.B)]
    return LoraLinearFunction.apply(layers, operation, len(inputs), *inputs, *matrices)


def forward_with_adapters(layers: list[LoraLinear], h: Tensor) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """The layers' outputs; and of their adapters, if there are any: s A of all, [ranks, in], the thin h (s
    A)ᵀ, and each B.

    A thin product for each adapter would cost more than its share: next to what a fast processor takes for
    the large ones, calls and passes over memory count (RESULTS.md).
    """
    outputs = tuple(layer(h) for layer in layers)
    adapted = [(layer.lora, y) for layer, y in zip(layers, outputs, strict=True) if layer.active_lora]
    if not adapted:
        return outputs, []
    A = torch.cat([lora.A * lora.scale for lora, _ in adapted]).to(h.dtype)
    low_rank = h @ A.t()
    Bs = [lora.B.to(h.dtype) for lora, _ in adapted]
    for (_, y), B, part in zip(adapted, Bs, low_rank.split([B.shape[1] for B in Bs], -1), strict=True):
        y.addmm_(part, B.t())
    return outputs, [A, low_rank, *Bs]


class LoraLinearFunction(torch.autograd.Function):
    """Linear layers with a common input h that is made again for the backward pass, from the operation's
    inputs.

    y = h Wᵀ + b + h (s A)ᵀ Bᵀ      dh = Σ dy W + dy B (s A)      dA = s (dy B)ᵀ h      dB = dyᵀ (h (s A)ᵀ)

    To make h costs one pass over memory, to keep it a third of a step's memory. W and b are frozen and get no
    gradient; dh is left out where nothing below is trained.
    """

    @staticmethod
    def forward(
        ctx, layers: list[LoraLinear], operation: ElementwiseOp, count: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """`tensors` are the operation's `count` inputs, then A and B of each adapted layer; these may be more
        precise.
        """
        h = operation(*tensors[:count])[0].to(layers[0].weight.dtype)
        outputs, adapters = forward_with_adapters(layers, h)
        ctx.save_for_backward(*tensors[:count], *adapters)
        ctx.layers, ctx.operation, ctx.count = layers, operation, count
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx, *dys: Tensor):
        saved = ctx.saved_tensors  # once: with --low-memory, to ask for them makes them
        inputs, adapters = saved[: ctx.count], saved[ctx.count :]
        value, vjp = ctx.operation(*inputs)
        dh, gradients = None, ()
        if any(ctx.needs_input_grad[3 : 3 + ctx.count]):
            dh = dys[0] @ ctx.layers[0].weight
            for layer, dy in zip(ctx.layers[1:], dys[1:], strict=True):
                dh.addmm_(dy, layer.weight)
        if adapters:
            A, low_rank, *Bs = adapters
            adapted = [
                (layer.lora, dy) for layer, dy in zip(ctx.layers, dys, strict=True) if layer.active_lora
            ]
            low_rank_dy = torch.cat([dy @ B for (_, dy), B in zip(adapted, Bs, strict=True)], -1)
            if dh is not None:
                dh.addmm_(low_rank_dy, A)
            ranks = [B.shape[1] for B in Bs]
            dAs = (low_rank_dy.t() @ value.to(A.dtype)).split(ranks)
            for (lora, dy), dA, part in zip(adapted, dAs, low_rank.split(ranks, -1), strict=True):
                gradients += dA.to(lora.A.dtype) * lora.scale, (part.t() @ dy).t().to(lora.B.dtype)
        below = (None,) * ctx.count if dh is None else vjp(dh.to(value.dtype))
        return None, None, None, *below, *gradients


def named_linears(decoder: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """The layers that can be adapted, by name: those inside the decoder's blocks, never the embedding or the
    head.
    """
    return ((name, module) for name, module in decoder.named_modules() if isinstance(module, LoraLinear))


def add_lora(
    decoder, rank: int, alpha: float, dropout: float, targets: list[str], seed: int = 0
) -> list[str]:
    """Put an adapter on the target layers. Returns their names. The first A is a function of the seed alone.

    Raises UserError for a target that the model does not have.
    """
    chosen = resolve_targets(targets, decoder.spec.architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = []
        for name, linear in named_linears(decoder):
            if name.split(".", 2)[2] in chosen:
                width_out, width_in = linear.weight.shape
                linear.lora = Lora(width_in, width_out, rank, alpha, dropout).to(linear.weight.device)
                adapted.append(name)
    return adapted


def resolve_targets(targets: list[str], architecture: str) -> set[str]:
    """`all`, `attention`, `mlp`, or the model's own names (`q_proj`, `mlp.c_fc`) to our names inside a
    layer.
    """
    known = {
        ours: theirs for ours, theirs in LAYER_MODULE_NAMES[architecture].items() if not ours.endswith("norm")
    }
    chosen: set[str] = set()
    unknown = []
    for target in targets:
        matches = {ours for ours, theirs in known.items() if _matches_target(target, ours, theirs)}
        chosen |= matches
        if not matches:
            unknown.append(target)
    if unknown:
        raise UserError(
            f"--targets: this model has no {', '.join(unknown)}; choose from all, attention, mlp, "
            f"{', '.join(known.values())}"
        )
    return chosen


def _matches_target(target: str, ours: str, theirs: str) -> bool:
    return target in ("all", ours.split(".")[0], ours) or theirs == target or theirs.endswith("." + target)


def trained_parameters(decoder) -> list[nn.Parameter]:
    return [
        parameter
        for _, linear in named_linears(decoder)
        if linear.lora is not None
        for parameter in (linear.lora.A, linear.lora.B)
    ]


@contextmanager
def without_adapter(decoder):
    """The base model's own answers, from the same weights in memory.

    Raises RuntimeError while the adapter is merged into the weights: it could not be switched off then.
    """
    if decoder.merged:
        raise RuntimeError("the adapter is merged; leave `merge_adapter` before switching the adapter off")
    layers = [linear for _, linear in named_linears(decoder)]
    for linear in layers:
        linear.adapter_enabled = False
    try:
        yield decoder
    finally:
        for linear in layers:
            linear.adapter_enabled = True
