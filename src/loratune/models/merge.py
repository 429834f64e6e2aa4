"""The adapter folded into the weights, and these packed, for the time that answers are written."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from loratune.models.lora import Linear, linears
from loratune.models.ops.prepacked import pack, packing_pays


@contextmanager
def merged(decoder) -> Iterator:
    """Each layer computes with W + s B A as one matrix, packed where that is faster; afterwards with the very same W again.

    The matrices are copies, as large as the layers: subtracting s B A again would not give W back bit for bit. Where the
    adapter is off, nothing is merged.
    """
    layers = [linear for _, linear in linears(decoder)]
    before = [(linear.weight, linear.adapted) for linear in layers]
    try:
        for linear in layers:
            weight = effective_weight(linear) if linear.active else linear.weight
            linear.adapted = False
            if weight.is_cpu and packing_pays(weight.dtype):
                linear.packed = pack(weight)
            else:
                linear.weight = nn.Parameter(weight, requires_grad=False)
        yield decoder
    finally:
        for linear, (weight, adapted) in zip(layers, before, strict=True):
            linear.weight, linear.adapted, linear.packed = weight, adapted, None


def effective_weight(linear: Linear) -> Tensor:
    """W + s B A, [out, in], summed in fp32 and rounded once to the precision of W."""
    lora = linear.lora
    with torch.no_grad():
        return torch.addmm(linear.weight.float(), lora.B, lora.A, alpha=lora.scale).to(linear.weight.dtype)
