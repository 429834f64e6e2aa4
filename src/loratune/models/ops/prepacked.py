"""Prepack a weight into the memory layout that oneDNN's matrix products read.

For the few tokens of a generation step, such a product is up to twice as fast as torch's own, or more, on an
AMD processor; on one of Intel's it was no faster, and single answers were slower.
"""

import platform
from functools import cache

import torch
from torch import Tensor

from loratune.system.hardware import processor_name

IS_X86 = platform.machine().lower() in ("x86_64", "amd64")  # where prepacking was measured


def can_prepack(precision: torch.dtype) -> bool:
    """Return whether oneDNN has prepacked products of this precision here; bf16 needs more than AVX2."""
    if not IS_X86 or not torch.backends.mkldnn.is_available():
        return False
    return precision == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


@cache
def is_prepacking_faster(precision: torch.dtype) -> bool:
    """Return whether products with few tokens are faster with prepacked weights on this processor."""
    return can_prepack(precision) and "intel" not in processor_name().lower()


def prepack_weight(weight: Tensor) -> Tensor:
    """Copy the weight, [out, in], into the layout that `prepacked_linear` alone can read."""
    expected_rows = 64  # of the products, for which the layout is chosen; any number gives right results
    return torch.ops.mkldnn._reorder_linear_weight(weight, expected_rows)


def prepacked_linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """Compute x Wᵀ + b, as `torch.nn.functional.linear`."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
