"""Merge the adapter into the weights, and prepack these, for as long as answers are written."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from loratune.models.decoder import Decoder
from loratune.models.lora import LoraLinear, named_linears
from loratune.models.ops.prepacked import is_prepacking_faster, prepack_weight


@contextmanager
def merge_adapter(decoder: Decoder) -> Iterator[Decoder]:
    """Let each layer compute with W + s B A as one matrix, prepacked where that is faster.

    Afterwards the layers have the very same W again: the matrices are copies, as large as the layers, because
    subtracting s B A would not give W back bit for bit. Where the adapter is off, nothing is merged. Inside
    another `merge_adapter` of the same decoder this does nothing, so that a session merges once.
    """
    if decoder.merged:
        yield decoder
        return
    layers = [linear for _, linear in named_linears(decoder)]
    before = [(linear.weight, linear.adapter_enabled) for linear in layers]
    try:
        decoder.merged = True
        for linear in layers:
            weight = compute_merged_weight(linear) if linear.active_lora else linear.weight
            linear.adapter_enabled = False
            if weight.is_cpu and is_prepacking_faster(weight.dtype):
                linear.packed = prepack_weight(weight)
            else:
                linear.weight = nn.Parameter(weight, requires_grad=False)
        yield decoder
    finally:
        for linear, (weight, adapter_enabled) in zip(layers, before, strict=True):
            linear.weight, linear.adapter_enabled, linear.packed = weight, adapter_enabled, None
        decoder.merged = False


def compute_merged_weight(linear: LoraLinear) -> Tensor:
    """Return W + s B A, [out, in], summed in fp32 and rounded once to the precision of W."""
    lora = linear.lora
    with torch.no_grad():
        return torch.addmm(linear.weight.float(), lora.B, lora.A, alpha=lora.scale).to(linear.weight.dtype)
