"""A weight in the order in which oneDNN's products read it.

For the few tokens of answers that are being written, such a product is up to twice as fast as torch's own and
more on an AMD processor; on one of Intel's it was no faster, and single answers were slower (RESULTS.md).
"""

import platform
from functools import cache

import torch
from torch import Tensor

from loratune.system.hardware import processor_name

IS_X86 = platform.machine().lower() in ("x86_64", "amd64")  # where it was measured


def can_prepack(precision: torch.dtype) -> bool:
    """Whether oneDNN has packed products of this precision here: in bf16 it needs more than AVX2."""
    if not IS_X86 or not torch.backends.mkldnn.is_available():
        return False
    return precision == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


@cache
def is_prepacking_faster(precision: torch.dtype) -> bool:
    """Whether this processor's products with few tokens are faster with packed weights."""
    return can_prepack(precision) and "intel" not in processor_name().lower()


def prepack_weight(weight: Tensor) -> Tensor:
    """The weight, [out, in], for `packed_linear` alone: a copy that nothing else can read."""
    return torch.ops.mkldnn._reorder_linear_weight(
        weight, 64
    )  # the rows of a product, roughly: any number is right


def prepacked_linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b, as `torch.nn.functional.linear`."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
