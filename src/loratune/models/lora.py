"""LoRA: a frozen linear layer plus a trained product of two low-rank matrices.

y = x Wᵀ + b + s dropout(x) Aᵀ Bᵀ,  s = alpha / rank        (Hu et al. 2021, "LoRA", equation 3;
arXiv:2106.09685)

A is [rank, in] and random, B is [out, rank] and zero at first, so that training starts at the base model.
`ops/linear.py` computes it.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loratune.errors import UserError
from loratune.models.architectures import get_architecture
from loratune.models.architectures.base import Architecture
from loratune.models.ops.prepacked import prepacked_linear
from loratune.models.spec import DecoderSpec

PEFT_PREFIX = "base_model.model."


class Adaptable(Protocol):
    """What adapters need of a decoder."""

    spec: DecoderSpec
    merged: bool  # whether the adapter is currently merged into the weights

    def named_modules(self) -> Iterable[tuple[str, nn.Module]]: ...


class Lora(nn.Module):
    """The adapter of one layer, in fp32 whatever the layer's precision."""

    def __init__(self, in_features: int, out_features: int, rank: int, alpha: float, dropout: float):
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, in_features))
        self.B = nn.Parameter(torch.zeros(out_features, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.alpha = alpha
        self.scale = alpha / rank
        self.dropout = dropout


class LoraLinear(nn.Module):
    """A frozen linear layer, [tokens, in] to [tokens, out], in its weight's precision.

    Calling it does not apply its adapter; `apply_lora_linears` does.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None
        self.lora: Lora | None = None
        self.adapter_enabled = True
        self.packed: Tensor | None = None  # replaces weight and adapter while answers are generated

    @property
    def active_lora(self) -> Lora | None:
        return self.lora if self.adapter_enabled else None

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is not None:
            return prepacked_linear(x, self.packed, self.bias)
        return F.linear(x, self.weight, self.bias)


def named_linears(decoder: Adaptable) -> Iterator[tuple[str, LoraLinear]]:
    """Yield the layers that can be adapted, by our names: all inside the blocks, never embedding or head."""
    return ((name, module) for name, module in decoder.named_modules() if isinstance(module, LoraLinear))


def to_peft_name(decoder: Adaptable, module: str) -> str:
    """Return PEFT's name of one of our modules."""
    return PEFT_PREFIX + get_architecture(decoder.spec).find_module(module).name


def adapter_parameters(decoder: Adaptable) -> dict[str, nn.Parameter]:
    """Return the adapter's matrices by PEFT's names: all that is trained, saved and counted, in one order."""
    parameters = {}
    for name, linear in named_linears(decoder):
        if linear.lora is not None:
            layer = to_peft_name(decoder, name)
            parameters[f"{layer}.lora_A.weight"] = linear.lora.A
            parameters[f"{layer}.lora_B.weight"] = linear.lora.B
    return parameters


def add_lora(
    decoder: Adaptable, rank: int, alpha: float, *, dropout: float, targets: list[str], seed: int = 0
) -> list[str]:
    """Put a new adapter on the target layers.

    Args:
        decoder: if these layers have an adapter already, it is replaced.
        rank: of the adapter's matrices.
        alpha: the adapter's product is multiplied by alpha / rank.
        dropout: on the adapter's input, in training.
        targets: as `resolve_targets` takes them.
        seed: of A's random initial values; B is zero at first.

    Returns:
        The names of the adapted layers.

    Raises:
        UserError: the model has no such target.
    """
    chosen = resolve_targets(targets, get_architecture(decoder.spec))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = []
        for name, linear in named_linears(decoder):
            if name.split(".", 2)[2] in chosen:
                out_features, in_features = linear.weight.shape
                linear.lora = Lora(in_features, out_features, rank, alpha, dropout).to(linear.weight.device)
                adapted.append(name)
    return adapted


def resolve_targets(targets: list[str], architecture: Architecture) -> set[str]:
    """Return our names of the target modules, inside a layer.

    Args:
        targets: `all`, `attention`, `mlp`, or the model's own names (`q_proj`, `mlp.c_fc`).
        architecture: the model's.

    Raises:
        UserError: the model has no such target.
    """
    known = architecture.linear_names
    chosen: set[str] = set()
    unknown = []
    for target in targets:
        matches = {ours for ours, theirs in known.items() if _matches_target(target, ours, theirs)}
        chosen |= matches
        if not matches:
            unknown.append(target)
    if unknown:
        raise UserError(
            f"this model has no {', '.join(unknown)}",
            setting="targets",
            remedy=f"choose from all, attention, mlp, {', '.join(known.values())}",
        )
    return chosen


def _matches_target(target: str, ours: str, theirs: str) -> bool:
    return target in ("all", ours.split(".")[0], ours) or theirs == target or theirs.endswith("." + target)


def attach_adapter(decoder: Adaptable, loras: Mapping[str, Lora]) -> None:
    """Put an adapter on the decoder in place of the one that it has.

    Args:
        decoder: the model.
        loras: our names of the layers -> their adapters; the other layers have none afterwards.

    Raises:
        RuntimeError: while the present adapter is merged into the weights.
    """
    require_unmerged(decoder)
    for name, linear in named_linears(decoder):
        linear.lora = loras.get(name)


def require_unmerged(decoder: Adaptable) -> None:
    """Raise RuntimeError while the adapter is merged: it can be neither switched off nor exchanged then."""
    if decoder.merged:
        raise RuntimeError(
            "the adapter is merged into the weights; leave `merge_adapter` (or the model's `session`) first"
        )


@contextmanager
def without_adapter(decoder: Adaptable) -> Iterator[None]:
    """Switch the adapter off within the context: the decoder computes as the base model does.

    Raises:
        RuntimeError: the adapter is merged into the weights, so it cannot be switched off.
    """
    require_unmerged(decoder)
    layers = [linear for _, linear in named_linears(decoder)]
    for linear in layers:
        linear.adapter_enabled = False
    try:
        yield
    finally:
        for linear in layers:
            linear.adapter_enabled = True
