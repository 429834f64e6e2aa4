"""Merge the adapter into the weights, and prepack them, while answers are generated."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from loratune.models.decoder import Decoder
from loratune.models.lora import Lora, named_linears
from loratune.models.ops.prepacked import is_prepacking_faster, prepack_weight


@contextmanager
def merge_adapter(decoder: Decoder) -> Iterator[None]:
    """Compute with W + s B A as one matrix within the context, prepacked where that is faster.

    Afterwards the layers have their own W again, bit for bit: the merged matrices are copies, because
    subtracting s B A would not restore W exactly. Where the adapter is off, nothing is merged.
    A nested `merge_adapter` of the same decoder does nothing, so that a session merges once.
    """
    if decoder.merged:
        yield
        return
    layers = [linear for _, linear in named_linears(decoder)]
    before = [(linear.weight, linear.adapter_enabled) for linear in layers]
    try:
        decoder.merged = True
        for linear in layers:
            lora = linear.active_lora
            weight = linear.weight if lora is None else compute_merged_weight(linear.weight, lora)
            linear.adapter_enabled = False
            if weight.is_cpu and is_prepacking_faster(weight.dtype):
                linear.packed = prepack_weight(weight)
            else:
                linear.weight = nn.Parameter(weight, requires_grad=False)
        yield
    finally:
        for linear, (weight, enabled) in zip(layers, before, strict=True):
            linear.weight, linear.adapter_enabled, linear.packed = weight, enabled, None
        decoder.merged = False


@torch.no_grad()
def compute_merged_weight(weight: Tensor, lora: Lora) -> Tensor:
    """Return W + s B A, [out, in], summed in fp32 and rounded once to the precision of W."""
    return torch.addmm(weight.float(), lora.B, lora.A, alpha=lora.scale).to(weight.dtype)
