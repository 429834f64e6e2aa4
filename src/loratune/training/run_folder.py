"""Run folder: the log and the checkpoints of a run, the best of them, and how a run is restored.

runs/NAME/settings.toml  facts.json  metrics.jsonl  summary.json  loss.png  best -> checkpoints/step-000120

A process that is killed at any instant leaves only complete checkpoints; one that is damaged later is not
used.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from loratune.errors import FileError, Problem, UserError
from loratune.models.adapter import ADAPTER_WEIGHTS_FILE
from loratune.models.decoder import Decoder
from loratune.system.atomic import (
    convert_os_error,
    create_folder_atomically,
    remove_folder,
    sync,
    translate_os_errors,
    write_json,
    write_text,
)
from loratune.system.messages import warn
from loratune.system.read import read_json
from loratune.training.checkpoint import TrainingState, find_damage, load_checkpoint, write_checkpoint

CHECKPOINTS_TO_KEEP = 2  # the newest, besides the best


class RunFolder:
    """The files of one run, below `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.metrics = folder / "metrics.jsonl"
        self.pending_lines: list[str] = []  # lines of the log
        self.saved_at = 0.0  # seconds of the run at its newest checkpoint

    def create(self, settings_toml: str, run_inputs: dict[str, Any]) -> None:
        """Create the folder with the run's settings and inputs, completely or not at all.

        Args:
            settings_toml: the settings, for people.
            run_inputs: from `collect_run_inputs`.

        Raises:
            UserError: there is a run of this name.
        """
        if self.folder.exists():
            name = self.folder.name
            raise UserError(
                f"{self.folder} exists",
                setting="run",
                value=name,
                remedy=f"go on with it by `run` {name} `resume`, or choose another name",
            )
        with create_folder_atomically(self.folder) as folder:
            write_text(folder / "settings.toml", settings_toml)
            write_json(folder / "facts.json", run_inputs)

    def read_run_inputs(self) -> dict[str, Any]:
        """Read the run's inputs. Raises UserError if the file is broken."""
        path = self.folder / "facts.json"
        run_inputs = read_json(path)
        if not isinstance(run_inputs, dict) or not isinstance(run_inputs.get("settings"), dict):
            raise UserError(f"{path}: broken: it must be an object with the run's settings; start a new run")
        return run_inputs

    def update_run_inputs(self, settings_toml: str, run_inputs: dict[str, Any]) -> None:
        """Replace the run's settings and inputs; the inputs come first, because they are authoritative."""
        write_json(self.folder / "facts.json", run_inputs)
        write_text(self.folder / "settings.toml", settings_toml)

    def append_log(self, row: dict[str, Any]) -> None:
        """Append a row to the log, or keep it in memory while the disk is full."""
        self.pending_lines.append(json.dumps(row) + "\n")
        try:
            self.write_log()
        except FileError as error:
            if len(self.pending_lines) == 1:
                warn(f"{error}. The run goes on until its next checkpoint; its log is kept in memory")

    def write_log(self) -> None:
        """Write all pending lines or none, because half a line would break the next one."""
        length = self.metrics.stat().st_size if self.metrics.exists() else 0
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.writelines(self.pending_lines)
        except OSError as error:
            with suppress(OSError):
                os.truncate(self.metrics, length)
            raise convert_os_error(error, self.metrics) from error
        self.pending_lines.clear()

    def read_log(self) -> list[dict[str, Any]]:
        """Return the log's rows. Raises ValueError for a broken line."""
        return list(self._read_rows())

    def _read_rows(self) -> Iterator[dict[str, Any]]:
        lines = self.metrics.read_bytes().splitlines(keepends=True) if self.metrics.is_file() else []
        for line in lines:
            if line.endswith(b"\n"):  # otherwise it is incomplete
                yield json.loads(line)

    def _has_steps(self) -> bool:
        return self.metrics.is_file() and b'"loss"' in self.metrics.read_bytes()

    def list_checkpoints(self) -> list[Path]:
        """List the checkpoints, oldest first."""
        paths = (self.folder / "checkpoints").glob("step-*")
        return sorted(
            (path for path in paths if path.name[5:].isdecimal()), key=lambda path: int(path.name[5:])
        )

    def checkpoint_path(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step-{step:06d}"

    def save(
        self,
        decoder: Decoder,
        optimizer: torch.optim.Optimizer,
        state: TrainingState,
        base: str,
        best: bool,
    ) -> None:
        """Save a checkpoint, completely or not at all and at most one per step; then remove old ones."""
        self.write_log()
        self.saved_at = state.elapsed
        target = self.checkpoint_path(state.step)
        if not target.exists():
            with create_folder_atomically(target) as folder:
                sync(self.metrics)  # after a power cut, the log must reach as far as the checkpoint
                write_checkpoint(folder, decoder, optimizer, state=state, base=base)
        if best:
            self._link_best(target)
        self._prune()

    def find_best(self) -> Path | None:
        link = self.folder / "best"
        return link.resolve() if link.exists() else None

    def _link_best(self, target: Path) -> None:
        link, beside = self.folder / "best", self.folder / ".best.tmp"
        with translate_os_errors(link):
            beside.unlink(missing_ok=True)
            beside.symlink_to(target.relative_to(self.folder))
            os.replace(beside, link)
            sync(self.folder)

    def _prune(self) -> None:
        best = self.find_best()
        for old in self.list_checkpoints()[:-CHECKPOINTS_TO_KEEP]:
            if old.resolve() != best:
                remove_folder(old)

    def restore(self, decoder: Decoder, optimizer: torch.optim.Optimizer) -> TrainingState:
        """Load the newest intact checkpoint into adapter and optimiser, and drop later rows of the log.

        Returns:
            The progress of the run; step 0 for a new run, which has no checkpoint.

        Raises:
            UserError: there are checkpoints, but none is intact.
        """
        self._remove_leftovers()
        intact = self._find_intact_checkpoints()
        state = load_checkpoint(intact[-1], decoder, optimizer) if intact else TrainingState()
        self.saved_at = state.elapsed
        self._truncate_log(state)
        if intact:
            self._repair_best(state, intact)
            self._prune()
        return state

    def _remove_leftovers(self) -> None:
        """Remove temporary files of a run that was killed."""
        for leftover in [*self.folder.glob(".*.tmp"), *self.folder.glob("checkpoints/.*.tmp")]:
            with translate_os_errors(leftover):
                if leftover.is_dir() and not leftover.is_symlink():
                    shutil.rmtree(leftover)
                else:
                    leftover.unlink()

    def _find_intact_checkpoints(self) -> list[Path]:
        """Return the intact checkpoints, oldest first; report and rename the damaged ones."""
        damages = {checkpoint: find_damage(checkpoint) for checkpoint in self.list_checkpoints()}
        intact = [checkpoint for checkpoint, damage in damages.items() if damage is None]
        damaged = {checkpoint: damage for checkpoint, damage in damages.items() if damage is not None}
        if not intact and (damaged or self._has_steps()):
            raise UserError(
                *(f"{checkpoint}: damaged: {damage}" for checkpoint, damage in damaged.items()),
                Problem(
                    f"{self.folder} has no whole checkpoint to go on from",
                    setting="resume",
                    remedy="bring one back from a copy, or start a new run",
                ),
            )
        for checkpoint, damage in damaged.items():
            aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
            warn(
                f"{checkpoint}: damaged: {damage}; it is now called {aside.name}, and the run goes on from "
                f"{intact[-1].name}"
            )
            shutil.rmtree(aside, ignore_errors=True)
            with translate_os_errors(checkpoint):
                os.replace(checkpoint, aside)
        return intact

    def _truncate_log(self, state: TrainingState) -> None:
        """Drop log rows after the state, whose steps and validations are repeated."""
        rows = []
        # A power cut may leave anything of the rows that were written after the checkpoint.
        with suppress(ValueError, LookupError, TypeError):
            for row in self._read_rows():
                last = state.step if "loss" in row else state.validated_step
                if row["step"] <= last:
                    rows.append(row)
        if missing := set(range(1, state.step + 1)) - {row["step"] for row in rows if "loss" in row}:
            warn(
                f"{self.metrics}: {len(missing)} of the {state.step} steps so far are missing here; the "
                "adapter lacks nothing"
            )
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    def _repair_best(self, state: TrainingState, intact: Sequence[Path]) -> None:
        """Point `best` at the best checkpoint, or at the best remaining one if that is lost.

        The run may have been killed after writing the checkpoint and before moving the link.
        """
        best = self.checkpoint_path(state.best_step)
        if best not in intact:
            validated = {
                self.checkpoint_path(row["step"]): row for row in self.read_log() if "val_nll" in row
            }
            remaining = [validated[checkpoint] for checkpoint in intact if checkpoint in validated]
            if remaining:
                row = min(remaining, key=lambda row: row["val_nll"])
                state.best_nll, state.best_step = row["val_nll"], row["step"]
            else:  # the next validation will be the best one, and there is one at the end
                state.best_nll, state.best_step, state.validated_step = math.inf, state.step, -1
            state.best_validation = state.validations
            lost, best = best, self.checkpoint_path(state.best_step)
            warn(
                f"{lost}: the best checkpoint so far is lost; {best.name} takes its place until a better one "
                "is found"
            )
        if self.find_best() != best.resolve():
            self._link_best(best)


def find_newest_run(runs: Path) -> Path:
    """Return the newest run's folder. Raises UserError when there is no run to resume."""
    settings_files = [path for path in runs.glob("*/settings.toml") if not path.parent.name.startswith(".")]
    if not settings_files:
        raise UserError(
            f"there is no run in {runs}/ to go on with",
            setting="resume",
            remedy="leave `resume` out to start one",
        )
    return max(settings_files, key=lambda path: path.stat().st_mtime).parent


def load_best_weights(run: RunFolder) -> dict[str, torch.Tensor]:
    """Load the weights of a run's best adapter. Raises UserError if the checkpoint is missing or damaged."""
    best = run.find_best()
    damage = find_damage(best) if best else "it is missing"
    if best is None or damage:
        raise UserError(
            f"{run.folder / 'best'}: damaged: {damage}",
            remedy=f"`run` {run.folder.name} `resume` takes the next best",
        )
    return load_file(best / ADAPTER_WEIGHTS_FILE)
