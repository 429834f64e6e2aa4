"""A run on disk: its log, its checkpoints, and the way back from one of them.

runs/NAME/settings.toml  facts.json  metrics.jsonl  summary.json  loss.png  best -> checkpoints/step-000120
runs/NAME/checkpoints/step-000120/adapter_model.safetensors  adapter_config.json  optimizer.safetensors  state.json  SHA256SUMS

A checkpoint is the adapter, the optimiser's moments, the state and, over all these files, their sha256. A process that is
killed at any instant leaves whole checkpoints alone; one that was damaged afterwards is not used.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from loratune.errors import FileError, UserError
from loratune.models.adapter import CONFIG, WEIGHTS, adapter_weights, read_adapter_weights, save_adapter
from loratune.models.lora import trained_parameters
from loratune.system.atomic import appearing, explained, explaining, remove_folder, replacing, sync, write_json, write_text
from loratune.system.console import warn
from loratune.system.read import fingerprint, read_json, read_text

KEPT = 2  # newest checkpoints that stay, besides the best
OPTIMIZER, STATE, SUMS = "optimizer.safetensors", "state.json", "SHA256SUMS"
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
        self.saved = 0.0  # seconds of the run at its newest checkpoint

    def create(self, settings_toml: str, facts: dict) -> None:
        """The folder with its settings and what the run is made from, at once: there is no run without them."""
        if self.folder.exists():
            name = self.folder.name
            raise UserError(f"--run {name}: {self.folder} exists; go on with it by --run {name} --resume, or choose another name")
        with appearing(self.folder) as folder:
            write_text(folder / "settings.toml", settings_toml)
            write_json(folder / "facts.json", facts)

    def facts(self) -> dict:
        """What the run is made from. Raises UserError when nobody knows any more."""
        path = self.folder / "facts.json"
        facts = read_json(path)
        if not isinstance(facts, dict) or not isinstance(facts.get("settings"), dict):
            raise UserError(f"{path}: broken: it must be an object with the run's settings; start a new run")
        return facts

    def change(self, settings_toml: str, facts: dict) -> None:
        """Go on with other settings or other facts. The facts, which hold the settings, too, decide: they come first."""
        write_json(self.folder / "facts.json", facts)
        write_text(self.folder / "settings.toml", settings_toml)

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
        """Raises ValueError for a broken line."""
        return list(self._read_rows())

    def _read_rows(self) -> Iterator[dict]:
        lines = self.metrics.read_bytes().splitlines(keepends=True) if self.metrics.is_file() else []
        for line in lines:
            if line.endswith(b"\n"):  # else it is only half there
                yield json.loads(line)

    def _has_steps(self) -> bool:
        return self.metrics.is_file() and b'"loss"' in self.metrics.read_bytes()

    def checkpoints(self) -> list[Path]:
        """The oldest first."""
        found = (self.folder / "checkpoints").glob("step-*")
        return sorted((path for path in found if path.name[5:].isdecimal()), key=lambda path: int(path.name[5:]))

    def checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step-{step:06d}"

    def save(self, decoder, optimizer, state: State, base: str, best: bool) -> None:
        """Write a checkpoint whole or not at all, then remove the old ones. One of the same step is not written again."""
        self.write_log()
        self.saved = state.elapsed
        target = self.checkpoint(state.step)
        if not target.exists():
            with appearing(target) as folder:
                sync(self.metrics)  # the log reaches as far as the checkpoint, also after a power cut
                save_adapter(decoder, folder, base)
                with replacing(folder / OPTIMIZER) as path:
                    save_file(moments_of(decoder, optimizer), path)
                write_json(folder / STATE, asdict(state))
                write_text(folder / SUMS, sums(folder))
        if best:
            self._point_best_at(target)
        self._prune()

    def best(self) -> Path | None:
        link = self.folder / "best"
        return link.resolve() if link.exists() else None

    def _point_best_at(self, target: Path) -> None:
        link, beside = self.folder / "best", self.folder / ".best.tmp"
        with explaining(link):
            beside.unlink(missing_ok=True)
            beside.symlink_to(target.relative_to(self.folder))
            os.replace(beside, link)
            sync(self.folder)

    def _prune(self) -> None:
        best = self.best()
        for old in self.checkpoints()[:-KEPT]:
            if old.resolve() != best:
                remove_folder(old)

    def restore(self, decoder, optimizer) -> State:
        """Load the newest whole checkpoint into the adapter and the optimiser, and forget the log's rows after it.

        A new run has none, and begins at step 0. Raises UserError when there were some and none is whole.
        """
        self._remove_leftovers()
        whole = self._whole_checkpoints()
        state = self._read(whole[-1], decoder, optimizer) if whole else State()
        self.saved = state.elapsed
        self._forget_rows_after(state)
        if whole:
            self._settle_best(state, whole)
            self._prune()
        return state

    def _remove_leftovers(self) -> None:
        """What was being written or removed when the run was killed."""
        for leftover in [*self.folder.glob(".*.tmp"), *self.folder.glob("checkpoints/.*.tmp")]:
            with explaining(leftover):
                shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()

    def _whole_checkpoints(self) -> list[Path]:
        """The oldest first. The damaged ones are said and set aside."""
        wrong = {checkpoint: damage(checkpoint) for checkpoint in self.checkpoints()}
        whole = [checkpoint for checkpoint, what in wrong.items() if what is None]
        damaged = {checkpoint: what for checkpoint, what in wrong.items() if what is not None}
        if not whole and (damaged or self._has_steps()):
            raise UserError(
                *(f"{checkpoint}: damaged: {what}" for checkpoint, what in damaged.items()),
                f"--resume: {self.folder} has no whole checkpoint to go on from; bring one back from a copy, or start a new run",
            )
        for checkpoint, what in damaged.items():
            aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
            warn(f"{checkpoint}: damaged: {what}; it is now called {aside.name}, and the run goes on from {whole[-1].name}")
            shutil.rmtree(aside, ignore_errors=True)
            with explaining(checkpoint):
                os.replace(checkpoint, aside)
        return whole

    def _read(self, checkpoint: Path, decoder, optimizer) -> State:
        try:
            put_weights(decoder, read_adapter_weights(checkpoint))
            put_moments(decoder, optimizer, load_file(checkpoint / OPTIMIZER))
            return State(**read_json(checkpoint / STATE))
        except (SafetensorError, OSError, KeyError, TypeError, RuntimeError) as error:
            raise UserError(f"{checkpoint}: whole, but not of this adapter or this version of loratune ({error})") from error

    def _forget_rows_after(self, state: State) -> None:
        """Steps and validations that the state does not know: they are done again."""
        kept = []
        # A power cut leaves anything of the rows that were written after the checkpoint.
        with suppress(ValueError, LookupError, TypeError):
            for row in self._read_rows():
                kept += [row] if row["step"] <= (state.step if "loss" in row else state.validated_step) else []
        if missing := set(range(1, state.step + 1)) - {row["step"] for row in kept if "loss" in row}:
            warn(f"{self.metrics}: {len(missing)} of the {state.step} steps so far are missing here; the adapter lacks nothing")
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))

    def _settle_best(self, state: State, whole: Sequence[Path]) -> None:
        """Let `best` be the best checkpoint, of which a kill may have kept it; if that is lost, the best that is left."""
        best = self.checkpoint(state.best_step)
        if best not in whole:
            measured = {self.checkpoint(row["step"]): row for row in self.rows() if "val_nll" in row}
            left = [measured[checkpoint] for checkpoint in whole if checkpoint in measured]
            # Without any that was measured, the next measurement is the best one: there will be one, at the end.
            row = min(left, key=lambda row: row["val_nll"], default={"step": state.step, "val_nll": math.inf})
            if not left:
                state.validated_step = -1
            state.best_nll, state.best_step, state.best_validation = row["val_nll"], row["step"], state.validations
            lost, best = best, self.checkpoint(row["step"])
            warn(f"{lost}: the best checkpoint so far is lost; {best.name} takes its place until a better one is found")
        if self.best() != best.resolve():
            self._point_best_at(best)


def sums(checkpoint: Path) -> str:
    """The sha256 of a checkpoint's files, as `sha256sum --check` reads them."""
    return "".join(f"{fingerprint(checkpoint / name)}  {name}\n" for name in (WEIGHTS, CONFIG, OPTIMIZER, STATE))


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None if each byte is as it was written."""
    try:
        now, then = sums(checkpoint), read_text(checkpoint / SUMS)
    except UserError as error:
        return str(error)
    if now == then:
        return None
    changed = [line.split()[1] for line in now.splitlines() if line not in then.splitlines()]
    return f"{' and '.join(changed) or 'something'} does not agree with {SUMS}"


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
    found = [path for path in runs.glob("*/settings.toml") if not path.parent.name.startswith(".")]
    if not found:
        raise UserError(f"--resume: there is no run in {runs}/ to go on with; leave --resume out to start one")
    return max(found, key=lambda path: path.stat().st_mtime).parent


def best_weights(run: RunFolder) -> dict[str, torch.Tensor]:
    """Raises UserError when the disk has lost them since they were written."""
    best = run.best()
    wrong = damage(best) if best else "it is missing"
    if wrong:
        raise UserError(f"{run.folder / 'best'}: damaged: {wrong}; --run {run.folder.name} --resume takes the next best")
    return load_file(best / WEIGHTS)
