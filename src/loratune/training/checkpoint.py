"""Checkpoint: write the state of a run to disk, check it against its checksums, and load it.

step-000120/adapter_model.safetensors  adapter_config.json  optimizer.safetensors  state.json  SHA256SUMS

The adapter, the optimiser's moments, the state and, over all these files, their sha256.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from loratune.errors import UserError
from loratune.models.adapter import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    read_adapter_weights,
    save_adapter,
)
from loratune.models.decoder import Decoder
from loratune.models.lora import adapter_parameters
from loratune.system.atomic import replace_atomically, write_json, write_text
from loratune.system.read import hash_file, read_json, read_text

OPTIMIZER_FILE, STATE_FILE, CHECKSUM_FILE = "optimizer.safetensors", "state.json", "SHA256SUMS"
MOMENTS = ("exp_avg", "exp_avg_sq")  # by AdamW's names


@dataclass
class TrainingState:
    """The progress of a run: all that its next step depends on besides the adapter and AdamW's moments."""

    step: int = 0
    elapsed: float = 0.0  # seconds since the first step, validations and checkpoints included
    stepping: float = 0.0  # seconds spent in optimiser steps
    tokens: int = 0  # input tokens trained on
    validations: int = 0
    validation_seconds: float = 0.0  # duration of the first validation
    base_nll: float | None = None
    best_nll: float | None = None
    best_step: int = 0
    best_validation: int = 0
    validated_step: int = -1  # step of the newest validation
    # Tokens of a micro-batch, if that of the settings did not fit into memory.
    micro_tokens: int | None = None

    @property
    def seconds_per_step(self) -> float:
        """Return the mean duration of an optimiser step."""
        return self.stepping / max(self.step, 1)


def write_checkpoint(
    folder: Path, decoder: Decoder, optimizer: torch.optim.Optimizer, *, state: TrainingState, base: str
) -> None:
    """Write a checkpoint's files into `folder`.

    Args:
        folder: an empty folder, which the caller moves into place when everything is written.
        decoder: with the adapter.
        optimizer: from `adamw`.
        state: the progress of the run.
        base: what PEFT calls the base model.

    Raises:
        UserError: the disk is full, or the adapter has a non-finite value.
    """
    save_adapter(decoder, folder, base)
    with replace_atomically(folder / OPTIMIZER_FILE) as path:
        save_file(collect_moments(decoder, optimizer), path)
    write_json(folder / STATE_FILE, asdict(state))
    write_text(folder / CHECKSUM_FILE, compute_checksums(folder))


def load_checkpoint(checkpoint: Path, decoder: Decoder, optimizer: torch.optim.Optimizer) -> TrainingState:
    """Load an intact checkpoint into the adapter and the optimiser, and return the progress of the run.

    Raises:
        UserError: it belongs to another adapter or another version of loratune.
    """
    try:
        restore_adapter_weights(decoder, read_adapter_weights(checkpoint))
        restore_moments(decoder, optimizer, load_file(checkpoint / OPTIMIZER_FILE))
        return TrainingState(**read_json(checkpoint / STATE_FILE))
    except (SafetensorError, OSError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{checkpoint}: intact, but not of this adapter or this version of loratune ({error})"
        ) from error


def compute_checksums(checkpoint: Path) -> str:
    """Return the sha256 of a checkpoint's files, as `sha256sum --check` reads them."""
    return "".join(
        f"{hash_file(checkpoint / name)}  {name}\n"
        for name in (ADAPTER_WEIGHTS_FILE, ADAPTER_CONFIG_FILE, OPTIMIZER_FILE, STATE_FILE)
    )


def find_damage(checkpoint: Path) -> str | None:
    """Return what is damaged in a checkpoint; None if every byte is as it was written."""
    try:
        current, recorded = compute_checksums(checkpoint), read_text(checkpoint / CHECKSUM_FILE)
    except UserError as error:
        return str(error)
    if current == recorded:
        return None
    changed = [line.split()[1] for line in current.splitlines() if line not in recorded.splitlines()]
    return f"{' and '.join(changed) or 'something'} does not agree with {CHECKSUM_FILE}"


def restore_adapter_weights(decoder: Decoder, weights: dict[str, torch.Tensor]) -> None:
    """Overwrite the adapter's matrices in place, because the optimiser refers to them."""
    for name, parameter in adapter_parameters(decoder).items():
        parameter.data.copy_(weights[name])


def collect_moments(decoder: Decoder, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return AdamW's moments by the parameters' names, and their common step count."""
    tensors = {}
    for name, parameter in adapter_parameters(decoder).items():
        if state := optimizer.state.get(parameter):
            tensors |= {f"{name}.{moment}": state[moment].cpu() for moment in MOMENTS}
            tensors["step"] = state["step"].cpu().reshape(1)
    return tensors


def restore_moments(
    decoder: Decoder, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]
) -> None:
    """Put moments from `collect_moments` into the optimiser; before the first step there are none."""
    if not tensors:
        return
    for name, parameter in adapter_parameters(decoder).items():
        moments = {moment: tensors[f"{name}.{moment}"].to(parameter.device) for moment in MOMENTS}
        optimizer.state[parameter] = {"step": tensors["step"][0].clone().to(parameter.device), **moments}
