"""Save, load and check adapters on disk, in PEFT's format, whichever tool trained them."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from loratune.errors import UserError
from loratune.models.decoder import Decoder
from loratune.models.lora import (
    PEFT_PREFIX,
    Lora,
    adapter_parameters,
    attach_adapter,
    named_linears,
    to_peft_name,
)
from loratune.models.peft_config import (
    ADAPTER_CONFIG_FILE,
    adapter_error,
    build_peft_config,
    compute_scale,
    read_adapter_config,
    suggest_merge,
)
from loratune.system.atomic import replace_atomically, write_json
from loratune.system.read import hash_file, read_json

ADAPTER_WEIGHTS_FILE, ADAPTER_METADATA_FILE = "adapter_model.safetensors", "loratune.json"
MLX_WEIGHTS_FILE = "adapters.safetensors"
# PEFT's names of the matrices. Files from other tools lack the prefix or include the adapter's name:
# lora_A.default.weight
MATRIX_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<layer>.+)\.lora_(?P<letter>[AB])(?:\.(?P<adapter>[^.]+))?\.weight"
)
# Matches names of weights outside the decoder layers.
OUTSIDE_BLOCKS = re.compile(r"lm_head|embed|\bwte\b|\bwpe\b|modules_to_save")


def get_adapter_weights(decoder: Decoder) -> dict[str, torch.Tensor]:
    """Return the adapter's matrices by PEFT's names, as they are written to a file."""
    return {
        name: parameter.detach().cpu().contiguous() for name, parameter in adapter_parameters(decoder).items()
    }


def save_adapter(decoder: Decoder, folder: Path, base: str) -> None:
    """Save the adapter's weights and configuration, then read the weights back and compare.

    Args:
        decoder: with the adapter.
        folder: the files of an older adapter in it are replaced.
        base: what PEFT calls the base model.

    Raises:
        UserError: the disk is full, or the adapter has a non-finite value; then nothing is written.
    """
    weights = get_adapter_weights(decoder)
    if broken := [name for name, matrix in weights.items() if not matrix.isfinite().all()]:
        raise UserError(
            f"the adapter has non-finite numbers in {broken[0]} and was not written",
            remedy="lower `learning_rate`",
        )
    with replace_atomically(folder / ADAPTER_WEIGHTS_FILE) as beside:
        save_file(weights, beside, metadata={"format": "pt"})
        written = load_file(beside)
        if written.keys() != weights.keys() or not all(
            written[name].equal(matrix) for name, matrix in weights.items()
        ):
            raise OSError(
                f"{folder / ADAPTER_WEIGHTS_FILE}: what was read back is not what was written; the disk may "
                "be failing"
            )
    write_json(folder / ADAPTER_CONFIG_FILE, build_peft_config(decoder, base))


def load_adapter(decoder: Decoder, folder: Path) -> None:
    """Load the adapter in `folder` onto the decoder, replacing any that it has.

    Raises:
        UserError: the adapter is missing or broken, made for another base, or not plain LoRA.
        RuntimeError: while the present adapter is merged into the weights.
    """
    attach_adapter(decoder, read_adapter(decoder, folder))


def read_adapter(decoder: Decoder, folder: Path) -> dict[str, Lora]:
    """Read an adapter, whoever trained it, without putting it on the decoder.

    Returns:
        Our names of the adapted layers -> their adapters, on the decoder's device.

    Raises:
        UserError: the adapter is missing or broken, made for another base, or not plain LoRA.
    """
    check_adapter_exists(folder)
    config = read_adapter_config(folder)
    weights = normalize_weight_names(read_adapter_weights(folder), folder)
    loras: dict[str, Lora] = {}
    for name, linear in named_linears(decoder):
        layer = to_peft_name(decoder, name)
        a, b = weights.pop(f"{layer}.lora_A.weight", None), weights.pop(f"{layer}.lora_B.weight", None)
        if a is None and b is None:
            continue
        if a is None or b is None:
            raise adapter_error(
                folder, f"{ADAPTER_WEIGHTS_FILE} is broken: {layer} has only one of its two matrices"
            )
        if not (a.dim() == b.dim() == 2 and a.numel() and b.numel()):
            raise adapter_error(
                folder, f"{ADAPTER_WEIGHTS_FILE} is broken: {layer} does not have two non-empty matrices"
            )
        scale = compute_scale(config, layer, a.shape[0], folder=folder)
        loras[name] = build_lora(a, b, linear.weight, scale=scale, folder=folder, layer=layer)
    if outside := [name for name in weights if OUTSIDE_BLOCKS.search(name)]:
        raise adapter_error(
            folder,
            f"it changes the embedding or the head ({outside[0].removeprefix(PEFT_PREFIX)}), not only the "
            "layers inside the blocks",
            remedy=suggest_merge(config, folder),
        )
    if weights:
        raise adapter_error(
            folder,
            "made for another base model, or for more than the linear layers inside its blocks: this one has "
            f"no place for {next(iter(weights))}",
        )
    if not loras:
        raise adapter_error(folder, f"{ADAPTER_WEIGHTS_FILE} holds no adapter matrices")
    return loras


def check_adapter_exists(folder: Path) -> None:
    """Raise UserError, saying what `folder` holds instead, unless it is an adapter in PEFT's format."""
    config = read_json(folder / ADAPTER_CONFIG_FILE) if (folder / ADAPTER_CONFIG_FILE).is_file() else {}
    if (isinstance(config, dict) and "lora_parameters" in config) or has_only_mlx_weights(folder):
        raise adapter_error(
            folder,
            f"an adapter in MLX's format ({MLX_WEIGHTS_FILE}), which cannot be read",
            remedy="merge it into its base with "
            f"`mlx_lm.fuse --model BASE --adapter-path {folder} --save-path MERGED --dequantize`, and use it "
            "with `model` MERGED",
        )
    if (folder / ADAPTER_CONFIG_FILE).is_file():
        return
    if subfolders := sorted(
        (path.parent for path in folder.glob(f"*/{ADAPTER_CONFIG_FILE}")), key=natural_sort_key
    ):
        *others, newest = subfolders
        also = f" (also there: {', '.join(path.name for path in others)})" if others else ""
        raise adapter_error(
            folder, "the adapter is in a subfolder", remedy=f"name it with `adapter` {newest}{also}"
        )
    raise adapter_error(
        folder,
        f"no adapter there ({ADAPTER_CONFIG_FILE} is missing)",
        remedy="train one with `loratune train`",
    )


def has_only_mlx_weights(folder: Path) -> bool:
    return (folder / MLX_WEIGHTS_FILE).is_file() and not (folder / ADAPTER_WEIGHTS_FILE).is_file()


def natural_sort_key(folder: Path) -> tuple[int, str]:
    """Return a key that sorts checkpoint-500 before checkpoint-1000."""
    number = re.search(r"\d{1,18}$", folder.name)
    return int(number[0]) if number else -1, folder.name


def normalize_weight_names(weights: dict[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights by PEFT's names, any others unchanged. Raises UserError if two share a name."""
    normalized, adapters = {}, set()
    for name, matrix in weights.items():
        peft_name = name
        if match := MATRIX_NAME.fullmatch(name):
            peft_name = f"{PEFT_PREFIX}{match['layer']}.lora_{match['letter']}.weight"
            adapters.add(match["adapter"])
        if len(adapters) > 1:
            names = ", ".join(sorted(f"{adapter or 'one without a name'}" for adapter in adapters))
            raise adapter_error(
                folder,
                f"{ADAPTER_WEIGHTS_FILE} holds several adapters ({names})",
                remedy="save one of them to a folder of its own",
            )
        if peft_name in normalized:
            raise adapter_error(
                folder,
                f"{ADAPTER_WEIGHTS_FILE} is broken: it holds {peft_name} twice, with and without "
                f"{PEFT_PREFIX}",
            )
        normalized[peft_name] = matrix
    return normalized


def read_adapter_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return an adapter's weights by the names in its file. Raises UserError if it is broken."""
    if not (folder / ADAPTER_WEIGHTS_FILE).is_file():
        raise adapter_error(
            folder,
            f"{ADAPTER_WEIGHTS_FILE} is missing (pickled .bin adapters are refused; save it as safetensors)",
        )
    try:
        weights = load_file(folder / ADAPTER_WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise adapter_error(folder, f"{ADAPTER_WEIGHTS_FILE} cannot be read: {error}") from error
    if broken := [name for name, matrix in weights.items() if not matrix.isfinite().all()]:
        raise adapter_error(
            folder,
            f"{ADAPTER_WEIGHTS_FILE} has non-finite numbers in {broken[0]}",
            remedy="train it again",
        )
    return weights


def build_lora(
    a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor, *, scale: float, folder: Path, layer: str
) -> Lora:
    """Build the adapter of one layer. Raises UserError if it does not have the layer's shape."""
    out_features, in_features = weight.shape
    rank = a.shape[0]
    if a.shape != (rank, in_features) or b.shape != (out_features, rank):
        raise adapter_error(
            folder,
            f"made for another base model: {layer.removeprefix(PEFT_PREFIX)} is "
            f"{out_features} x {in_features} here, but {b.shape[0]} x {a.shape[1]} in the adapter",
        )
    lora = Lora(in_features, out_features, rank, alpha=scale * rank, dropout=0.0)
    lora.scale = scale  # exactly; alpha / rank may differ in the last bit
    lora.A.data, lora.B.data = a.float().to(weight.device), b.float().to(weight.device)
    return lora


def read_adapter_metadata(folder: Path) -> dict[str, Any]:
    """Return the content of `loratune.json` beside the adapter; empty for an adapter of another tool.

    Raises:
        UserError: a field that other code relies on has the wrong type; the template is checked where it is
            used.
    """
    path = folder / ADAPTER_METADATA_FILE
    metadata = read_json(path) if path.is_file() else {}
    base = metadata.get("base", {"name": "", "fingerprint": ""}) if isinstance(metadata, dict) else None
    if not isinstance(base, dict) or not all(
        isinstance(base.get(name), str) for name in ("name", "fingerprint")
    ):
        raise UserError(f"{path}: broken: it must be an object whose base has a name and a fingerprint")
    if not isinstance(metadata.get("files", {}), dict):
        raise UserError(f"{path}: broken: files must be an object with their sha256")
    prepared = metadata.get("prepared", {})
    if not isinstance(prepared, dict) or type(prepared.get("fact_tokens", 1)) is not int:
        raise UserError(f"{path}: prepared: broken: it must be an object, and its fact_tokens a whole number")
    if not isinstance(metadata.get("bos", False), bool):
        raise UserError(f"{path}: bos: broken: it must be true or false")
    return metadata


def write_adapter_metadata(folder: Path, metadata: dict[str, Any]) -> None:
    """Write `loratune.json` for the adapter in `folder`."""
    content = metadata | {
        "files": {name: hash_file(folder / name) for name in (ADAPTER_WEIGHTS_FILE, ADAPTER_CONFIG_FILE)}
    }
    write_json(folder / ADAPTER_METADATA_FILE, json.loads(json.dumps(content, default=str)))


def check_adapter_files(folder: Path, metadata: dict[str, Any]) -> None:
    """Raise UserError unless the adapter's files are those that its `loratune.json` describes."""
    files = metadata.get("files", {})  # empty for another tool's adapter
    if changed := [
        name
        for name in (ADAPTER_WEIGHTS_FILE, ADAPTER_CONFIG_FILE)
        if name in files and files[name] != hash_file(folder / name)
    ]:
        raise adapter_error(
            folder,
            f"{' and '.join(changed)} and loratune.json are of different adapters: training was killed while "
            "it saved one over the other, or a file was changed since",
            remedy="go on with that run (loratune train --resume)",
        )
