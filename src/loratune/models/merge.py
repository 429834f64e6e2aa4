"""The adapter folded into the weights, for the time that answers are written."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from loratune.models.lora import Linear, linears


@contextmanager
def merged(decoder) -> Iterator:
    """Each adapted layer computes with W + s B A as one matrix, as fast as the base; afterwards with the very same W again.

    The merged matrices are copies, as large as the adapted layers: subtracting s B A again would not give W back bit for
    bit. Where the adapter is off, nothing is merged.
    """
    layers = [linear for _, linear in linears(decoder) if linear.lora is not None and linear.adapted]
    weights = [linear.weight for linear in layers]
    try:
        for linear in layers:
            linear.weight = nn.Parameter(effective_weight(linear), requires_grad=False)
            linear.adapted = False
        yield decoder
    finally:
        for linear, weight in zip(layers, weights, strict=True):
            linear.weight, linear.adapted = weight, True


def effective_weight(linear: Linear) -> Tensor:
    """W + s B A, [out, in], summed in fp32 and rounded once to the precision of W."""
    lora = linear.lora
    with torch.no_grad():
        return torch.addmm(linear.weight.float(), lora.B, lora.A, alpha=lora.scale).to(linear.weight.dtype)
