"""A weight in the order in which oneDNN's products read it.

For the few tokens of answers that are being written, such a product is up to twice as fast as torch's own and more (RESULTS.md).
"""

import platform

import torch
from torch import Tensor

X86 = platform.machine().lower() in ("x86_64", "amd64")  # where it was measured


def pack(weight: Tensor) -> Tensor | None:
    """The weight, [out, in], for `packed_linear` alone: a copy that nothing else can read. None where torch cannot do that."""
    if not (X86 and weight.is_cpu and torch.backends.mkldnn.is_available()):
        return None
    return torch.ops.mkldnn._reorder_linear_weight(weight, 64)  # the rows of a product, roughly: any number is right


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b, as `torch.nn.functional.linear`."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
