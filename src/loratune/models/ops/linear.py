"""Frozen linear layers with LoRA that share an input, which is recomputed for the backward pass."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from loratune.models.ops.elementwise import ElementwiseOp, apply_elementwise
from loratune.models.ops.reference import lora_linear, uses_reference


class LowRankUpdate(Protocol):
    """s B A, which is added to a weight [out, in]."""

    @property
    def A(self) -> Tensor: ...  # [rank, in]
    @property
    def B(self) -> Tensor: ...  # [out, rank]

    scale: float
    dropout: float  # on its input, in training


class AdaptedLinear(Protocol):
    """A frozen linear layer, [tokens, in] to [tokens, out], which may have an adapter."""

    @property
    def weight(self) -> Tensor: ...  # [out, in]
    @property
    def bias(self) -> Tensor | None: ...  # [out]
    @property
    def active_lora(self) -> LowRankUpdate | None: ...
    @property
    def training(self) -> bool: ...
    def __call__(self, x: Tensor) -> Tensor: ...  # without the adapter


def apply_lora_linears(
    layers: Sequence[AdaptedLinear], operation: ElementwiseOp, *inputs: Tensor
) -> tuple[Tensor, ...]:
    """Return the outputs of layers that share the input h = operation(*inputs), differentiable.

    Args:
        layers: with adapters or without.
        operation: computes h, [tokens, in], from its inputs.
        inputs: of the operation; h is computed in their precision and multiplied in that of the weights.

    Returns:
        One tensor [tokens, out] a layer.
    """
    # The fast layers call the handwritten derivative, which a reference operation does not have.
    is_reference = uses_reference("linear") or uses_reference("elementwise")
    if is_reference or any(map(has_active_dropout, layers)):
        h = apply_elementwise(operation, *inputs).to(layers[0].weight.dtype)
        return tuple(apply_lora_linear_by_autograd(layer, h) for layer in layers)
    if not torch.is_grad_enabled():
        return forward_with_adapters(layers, operation(*inputs)[0].to(layers[0].weight.dtype))[0]
    updates = [update for layer in layers if (update := layer.active_lora)]
    matrices = [matrix for update in updates for matrix in (update.A, update.B)]
    return LoraLinearFunction.apply(  # pyright: ignore[reportReturnType]
        layers, operation, len(inputs), *inputs, *matrices
    )


def has_active_dropout(layer: AdaptedLinear) -> bool:
    update = layer.active_lora
    return layer.training and update is not None and update.dropout > 0


def apply_lora_linear_by_autograd(layer: AdaptedLinear, h: Tensor) -> Tensor:
    """Return the layer's output for its input h; the adapter's derivative is left to autograd."""
    update = layer.active_lora
    if update is None:
        return layer(h)
    dropout = update.dropout if layer.training else 0.0
    return lora_linear(
        h, layer.weight, layer.bias, A=update.A, B=update.B, scale=update.scale, dropout=dropout
    )


def forward_with_adapters(
    layers: Sequence[AdaptedLinear], h: Tensor
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """Return the layers' outputs for their input h, and what the backward pass needs of the adapters.

    That is s A of all adapters, [ranks, in], the low-rank h (s A)ᵀ, [tokens, ranks], and each B; nothing
    where there is no adapter. All A are one product: next to what a fast processor takes for the large
    products, calls and passes over memory count.
    """
    outputs = tuple(layer(h) for layer in layers)
    adapted = [(update, y) for layer, y in zip(layers, outputs, strict=True) if (update := layer.active_lora)]
    if not adapted:
        return outputs, []
    A = torch.cat([update.A * update.scale for update, _ in adapted]).to(h.dtype)
    low_rank = h @ A.t()
    Bs = [update.B.to(h.dtype) for update, _ in adapted]
    for (_, y), B, part in zip(adapted, Bs, low_rank.split([B.shape[1] for B in Bs], -1), strict=True):
        y.addmm_(part, B.t())
    return outputs, [A, low_rank, *Bs]


class LoraLinearFunction(torch.autograd.Function):
    """Linear layers with a common input h, recomputed from the operation's inputs for the backward pass.

    y = h Wᵀ + b + h (s A)ᵀ Bᵀ      dh = Σ dy W + dy B (s A)      dA = s (dy B)ᵀ h      dB = dyᵀ (h (s A)ᵀ)

    Recomputing h costs one pass over memory, while storing it would cost a third of a step's memory. W and b
    are frozen and get no gradient; dh is not computed where nothing below is trained.
    """

    @staticmethod
    def forward(
        ctx: Any, layers: Sequence[AdaptedLinear], operation: ElementwiseOp, count: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """`tensors` are the operation's `count` inputs, then A and B of each adapted layer."""
        h = operation(*tensors[:count])[0].to(layers[0].weight.dtype)
        outputs, adapters = forward_with_adapters(layers, h)
        ctx.save_for_backward(*tensors[:count], *adapters)
        ctx.layers, ctx.operation, ctx.count = layers, operation, count
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """`grad_outputs` are the dy of the layers, [tokens, out] each."""
        saved = ctx.saved_tensors  # read once: with gradient checkpointing, reading them computes them
        inputs, adapters = saved[: ctx.count], saved[ctx.count :]
        value, vjp = ctx.operation(*inputs)
        dh, gradients = None, ()
        if any(ctx.needs_input_grad[3 : 3 + ctx.count]):
            dh = grad_outputs[0] @ ctx.layers[0].weight
            for layer, dy in zip(ctx.layers[1:], grad_outputs[1:], strict=True):
                dh.addmm_(dy, layer.weight)
        if adapters:
            A, low_rank, *Bs = adapters
            adapted = [
                (update, dy)
                for layer, dy in zip(ctx.layers, grad_outputs, strict=True)
                if (update := layer.active_lora)
            ]
            low_rank_dy = torch.cat([dy @ B for (_, dy), B in zip(adapted, Bs, strict=True)], -1)
            if dh is not None:
                dh.addmm_(low_rank_dy, A)
            ranks = [B.shape[1] for B in Bs]
            dAs = (low_rank_dy.t() @ value.to(A.dtype)).split(ranks)
            for (update, dy), dA, part in zip(adapted, dAs, low_rank.split(ranks, -1), strict=True):
                gradients += dA.to(update.A.dtype) * update.scale, (part.t() @ dy).t().to(update.B.dtype)
        below = (None,) * ctx.count if dh is None else vjp(dh.to(value.dtype))
        return None, None, None, *below, *gradients
