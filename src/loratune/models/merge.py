"""Merge the adapter into the weights: in memory while answers are generated, or in a model folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from loratune.models.architectures import get_architecture
from loratune.models.decoder import Decoder
from loratune.models.load import read_transformers_model
from loratune.models.lora import Lora, named_linears
from loratune.models.ops.prepacked import is_prepacking_faster, prepack_weight
from loratune.system.quiet import quiet_libraries


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


@torch.no_grad()
def write_merged_model(decoder: Decoder, base: Path, folder: Path, *, dtype: torch.dtype) -> None:
    """Write the base model with the decoder's adapter merged in, as transformers saves a model.

    Args:
        decoder: the model with the adapter.
        base: the base model's folder; its fp32 weights are read again, whatever precision the decoder has.
        folder: an existing folder for configuration, generation settings and safetensors files.
        dtype: of the written weights.
    """
    model = read_transformers_model(base)
    weights, architecture = model.state_dict(), get_architecture(decoder.spec)
    for name, linear in named_linears(decoder):
        if linear.lora is not None:
            source = architecture.find_module(name)
            weight = source.transform(weights[f"{source.name}.weight"])  # a view: adding changes the model
            weight.addmm_(linear.lora.B.cpu(), linear.lora.A.cpu(), alpha=linear.lora.scale)
    with quiet_libraries():
        cast(torch.nn.Module, model).to(dtype)
        model.save_pretrained(folder)
