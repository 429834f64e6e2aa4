"""A run on disk: its log, its checkpoints, and the way back from one of them.

runs/NAME/settings.toml  metrics.jsonl  summary.json  loss.png  checkpoints/step-000120/  best -> checkpoints/step-000120
"""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from loratune.console import warn
from loratune.errors import FileError, UserError
from loratune.files import explained, explaining, filling, read_json, replacing, write_json, write_text
from loratune.models.adapter import WEIGHTS, adapter_weights, read_adapter_weights, save_adapter
from loratune.models.lora import trained_parameters

KEPT = 2  # newest checkpoints that stay, besides the best
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class State:
    """Where a run is. Everything that the next step depends on, besides the adapter and the optimiser's moments."""

    step: int = 0
    elapsed: float = 0.0  # seconds since the first step, validations and checkpoints included
    stepping: float = 0.0  # seconds of these spent in steps
    tokens: int = 0
    validations: int = 0
    validation_seconds: float = 0.0  # what the first one took
    base_nll: float | None = None
    best_nll: float | None = None
    best_step: int = 0
    best_validation: int = 0
    validated_step: int = -1  # at which the last one was
    micro_tokens: int | None = None  # tokens computed at once, where those of the settings did not fit into the memory

    @property
    def pace(self) -> float:
        """Seconds that a step takes."""
        return self.stepping / max(self.step, 1)


class RunFolder:
    def __init__(self, folder: Path):
        self.folder = folder
        self.metrics = folder / "metrics.jsonl"
        self.unwritten: list[str] = []  # lines of the log

    def create(self, settings_toml: str, facts: dict) -> None:
        """Raises UserError where there is such a run, and FileError, with nothing made, where it cannot be written."""
        if self.folder.exists():
            name = self.folder.name
            raise UserError(f"--run {name}: {self.folder} exists; go on with it by --run {name} --resume, or choose another name")
        with filling(self.folder) as folder:
            write_text(folder / "settings.toml", settings_toml)
            write_json(folder / "facts.json", facts)

    def log(self, row: dict) -> None:
        """While the disk is full the rows wait for the next one; without them no checkpoint is written."""
        self.unwritten.append(json.dumps(row) + "\n")
        try:
            self.write_log()
        except FileError as error:
            if len(self.unwritten) == 1:
                warn(f"{error}. The run goes on until its next checkpoint; its log is kept in memory")

    def write_log(self) -> None:
        """All the lines that wait, or none: half a line would spoil the next one."""
        length = self.metrics.stat().st_size if self.metrics.exists() else 0
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.writelines(self.unwritten)
        except OSError as error:
            with suppress(OSError):
                os.truncate(self.metrics, length)
            raise explained(error, self.metrics) from error
        self.unwritten.clear()

    def rows(self) -> list[dict]:
        if not self.metrics.is_file():
            return []
        lines = self.metrics.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]

    def checkpoints(self) -> list[Path]:
        return sorted((self.folder / "checkpoints").glob("step-*"))

    def save(self, decoder, optimizer, state: State, base: str, best: bool) -> None:
        """Write a checkpoint whole or not at all, then remove the old ones."""
        self.write_log()
        target = self.folder / "checkpoints" / f"step-{state.step:06d}"
        beside = target.with_name(f".{target.name}.tmp")
        shutil.rmtree(beside, ignore_errors=True)
        try:
            with explaining(target):
                save_adapter(decoder, beside, base)
                with replacing(beside / "optimizer.safetensors") as path:
                    save_file(moments_of(decoder, optimizer), path)
                write_json(beside / "state.json", asdict(state))
                shutil.rmtree(target, ignore_errors=True)
                os.replace(beside, target)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        if best:
            self._point_best_at(target)
        self._prune()

    def best(self) -> Path | None:
        link = self.folder / "best"
        return link.resolve() if link.exists() else None

    def _point_best_at(self, target: Path) -> None:
        beside = self.folder / ".best.tmp"
        beside.unlink(missing_ok=True)
        beside.symlink_to(target.relative_to(self.folder))
        os.replace(beside, self.folder / "best")

    def _prune(self) -> None:
        best = self.best()
        for old in self.checkpoints()[:-KEPT]:
            if old.resolve() != best:
                shutil.rmtree(old)

    def restore(self, decoder, optimizer) -> State:
        """Load the newest checkpoint into the adapter and the optimiser, and forget the log's rows after it."""
        checkpoints = self.checkpoints()
        state = self._read(checkpoints[-1], decoder, optimizer) if checkpoints else State(step=-1)
        kept = [row for row in self.rows() if row["step"] <= state.step]
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))
        return state if checkpoints else State()

    def _read(self, checkpoint: Path, decoder, optimizer) -> State:
        put_weights(decoder, read_adapter_weights(checkpoint))
        try:
            put_moments(decoder, optimizer, load_file(checkpoint / "optimizer.safetensors"))
            return State(**read_json(checkpoint / "state.json"))
        except (SafetensorError, OSError, KeyError, TypeError) as error:
            raise UserError(f"{checkpoint}: damaged ({error}); remove this folder to go on from the one before") from error


def put_weights(decoder, weights: dict[str, torch.Tensor]) -> None:
    """Overwrite the adapter's matrices in place, so that the optimiser keeps pointing at them."""
    for parameter, name in zip(trained_parameters(decoder), adapter_weights(decoder), strict=True):
        parameter.data.copy_(weights[name])


def moments_of(decoder, optimizer) -> dict[str, torch.Tensor]:
    """AdamW's moments by the adapter's names, and its step count, which is the same for all of them."""
    names, tensors = list(adapter_weights(decoder)), {}
    for name, parameter in zip(names, trained_parameters(decoder), strict=True):
        if state := optimizer.state.get(parameter):
            tensors |= {f"{name}.{kind}": state[kind].cpu() for kind in MOMENTS}
            tensors["step"] = state["step"].cpu().reshape(1)
    return tensors


def put_moments(decoder, optimizer, tensors: dict[str, torch.Tensor]) -> None:
    if not tensors:
        return
    for name, parameter in zip(adapter_weights(decoder), trained_parameters(decoder), strict=True):
        moments = {kind: tensors[f"{name}.{kind}"].to(parameter.device) for kind in MOMENTS}
        optimizer.state[parameter] = {"step": tensors["step"][0].clone().to(parameter.device), **moments}


def newest_run(runs: Path) -> Path:
    """Raises UserError when there is none to resume."""
    found = sorted(runs.glob("*/settings.toml"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"--resume: there is no run in {runs}/ to go on with; leave --resume out to start one")
    return found[-1].parent


def best_weights(run: RunFolder) -> dict[str, torch.Tensor] | None:
    best = run.best()
    return load_file(best / WEIGHTS) if best else None
