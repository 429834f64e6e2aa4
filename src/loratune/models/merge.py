"""The adapter folded into the weights, and these packed, for the time that answers are written."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from loratune.models.lora import LoraLinear, named_linears
from loratune.models.ops.prepacked import is_prepacking_faster, prepack_weight


@contextmanager
def merge_adapter(decoder) -> Iterator:
    """Each layer computes with W + s B A as one matrix, packed where that is faster; afterwards with the very
    same W again.

    The matrices are copies, as large as the layers: subtracting s B A again would not give W back bit for
    bit. Where the adapter is off, nothing is merged.
    """
    layers = [linear for _, linear in named_linears(decoder)]
    before = [(linear.weight, linear.adapter_enabled) for linear in layers]
    try:
        for linear in layers:
            weight = compute_merged_weight(linear) if linear.active_lora else linear.weight
            linear.adapter_enabled = False
            if weight.is_cpu and is_prepacking_faster(weight.dtype):
                linear.packed = prepack_weight(weight)
            else:
                linear.weight = nn.Parameter(weight, requires_grad=False)
        yield decoder
    finally:
        for linear, (weight, adapted) in zip(layers, before, strict=True):
            linear.weight, linear.adapter_enabled, linear.packed = weight, adapted, None


def compute_merged_weight(linear: LoraLinear) -> Tensor:
    """W + s B A, [out, in], summed in fp32 and rounded once to the precision of W."""
    lora = linear.lora
    with torch.no_grad():
        return torch.addmm(linear.weight.float(), lora.B, lora.A, alpha=lora.scale).to(linear.weight.dtype)
