"""A run on disk: its log, its checkpoints, the best of them, and how a run is continued.

runs/NAME/settings.toml  facts.json  metrics.jsonl  summary.json  loss.png  best -> checkpoints/step-000120

A process that is killed at any instant leaves only whole checkpoints; one that was damaged afterwards is not
used.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load_file

from loratune.errors import FileError, UserError
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

    def create(self, settings_toml: str, run_inputs: dict) -> None:
        """The folder with its settings and what the run is made from, at once: there is no run without
        them.
        """
        if self.folder.exists():
            name = self.folder.name
            raise UserError(
                f"--run {name}: {self.folder} exists; go on with it by --run {name} --resume, or choose "
                "another name"
            )
        with create_folder_atomically(self.folder) as folder:
            write_text(folder / "settings.toml", settings_toml)
            write_json(folder / "facts.json", run_inputs)

    def read_run_inputs(self) -> dict:
        """What the run is made from. Raises UserError when nobody knows any more."""
        path = self.folder / "facts.json"
        facts = read_json(path)
        if not isinstance(facts, dict) or not isinstance(facts.get("settings"), dict):
            raise UserError(f"{path}: broken: it must be an object with the run's settings; start a new run")
        return facts

    def update_run_inputs(self, settings_toml: str, run_inputs: dict) -> None:
        """Go on with other settings or other facts. The facts, which hold the settings, too, decide: they
        come first.
        """
        write_json(self.folder / "facts.json", run_inputs)
        write_text(self.folder / "settings.toml", settings_toml)

    def append_log(self, row: dict) -> None:
        """While the disk is full the rows wait for the next one; without them no checkpoint is written."""
        self.pending_lines.append(json.dumps(row) + "\n")
        try:
            self.write_log()
        except FileError as error:
            if len(self.pending_lines) == 1:
                warn(f"{error}. The run goes on until its next checkpoint; its log is kept in memory")

    def write_log(self) -> None:
        """All the lines that wait, or none: half a line would spoil the next one."""
        length = self.metrics.stat().st_size if self.metrics.exists() else 0
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.writelines(self.pending_lines)
        except OSError as error:
            with suppress(OSError):
                os.truncate(self.metrics, length)
            raise convert_os_error(error, self.metrics) from error
        self.pending_lines.clear()

    def read_log(self) -> list[dict]:
        """Raises ValueError for a broken line."""
        return list(self._read_rows())

    def _read_rows(self) -> Iterator[dict]:
        lines = self.metrics.read_bytes().splitlines(keepends=True) if self.metrics.is_file() else []
        for line in lines:
            if line.endswith(b"\n"):  # else it is only half there
                yield json.loads(line)

    def _has_steps(self) -> bool:
        return self.metrics.is_file() and b'"loss"' in self.metrics.read_bytes()

    def list_checkpoints(self) -> list[Path]:
        """The oldest first."""
        found = (self.folder / "checkpoints").glob("step-*")
        return sorted(
            (path for path in found if path.name[5:].isdecimal()), key=lambda path: int(path.name[5:])
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
        """Write a checkpoint whole or not at all, then remove the old ones. One of the same step is not
        written again.
        """
        self.write_log()
        self.saved_at = state.elapsed
        target = self.checkpoint_path(state.step)
        if not target.exists():
            with create_folder_atomically(target) as folder:
                sync(self.metrics)  # the log reaches as far as the checkpoint, also after a power cut
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
        """Load the newest whole checkpoint into the adapter and the optimiser, and forget the log's rows
        after it.

        A new run has none, and begins at step 0. Raises UserError when there were some and none is whole.
        """
        self._remove_leftovers()
        whole = self._find_intact_checkpoints()
        state = load_checkpoint(whole[-1], decoder, optimizer) if whole else TrainingState()
        self.saved_at = state.elapsed
        self._truncate_log(state)
        if whole:
            self._repair_best(state, whole)
            self._prune()
        return state

    def _remove_leftovers(self) -> None:
        """What was being written or removed when the run was killed."""
        for leftover in [*self.folder.glob(".*.tmp"), *self.folder.glob("checkpoints/.*.tmp")]:
            with translate_os_errors(leftover):
                shutil.rmtree(
                    leftover
                ) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()

    def _find_intact_checkpoints(self) -> list[Path]:
        """The oldest first. The damaged ones are said and set aside."""
        wrong = {checkpoint: find_damage(checkpoint) for checkpoint in self.list_checkpoints()}
        whole = [checkpoint for checkpoint, what in wrong.items() if what is None]
        damaged = {checkpoint: what for checkpoint, what in wrong.items() if what is not None}
        if not whole and (damaged or self._has_steps()):
            raise UserError(
                *(f"{checkpoint}: damaged: {what}" for checkpoint, what in damaged.items()),
                f"--resume: {self.folder} has no whole checkpoint to go on from; bring one back from a "
                "copy, or start a new run",
            )
        for checkpoint, what in damaged.items():
            aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
            warn(
                f"{checkpoint}: damaged: {what}; it is now called {aside.name}, and the run goes on from "
                f"{whole[-1].name}"
            )
            shutil.rmtree(aside, ignore_errors=True)
            with translate_os_errors(checkpoint):
                os.replace(checkpoint, aside)
        return whole

    def _truncate_log(self, state: TrainingState) -> None:
        """Steps and validations that the state does not know: they are done again."""
        kept = []
        # A power cut leaves anything of the rows that were written after the checkpoint.
        with suppress(ValueError, LookupError, TypeError):
            for row in self._read_rows():
                kept += (
                    [row] if row["step"] <= (state.step if "loss" in row else state.validated_step) else []
                )
        if missing := set(range(1, state.step + 1)) - {row["step"] for row in kept if "loss" in row}:
            warn(
                f"{self.metrics}: {len(missing)} of the {state.step} steps so far are missing here; the "
                "adapter lacks nothing"
            )
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))

    def _repair_best(self, state: TrainingState, whole: Sequence[Path]) -> None:
        """Let `best` be the best checkpoint, of which a kill may have kept it; if that is lost, the best that
        is left.
        """
        best = self.checkpoint_path(state.best_step)
        if best not in whole:
            measured = {self.checkpoint_path(row["step"]): row for row in self.read_log() if "val_nll" in row}
            left = [measured[checkpoint] for checkpoint in whole if checkpoint in measured]
            # Without any that was measured, the next measurement is the best one: there will be one, at the
            # end.
            row = min(left, key=lambda row: row["val_nll"], default={"step": state.step, "val_nll": math.inf})
            if not left:
                state.validated_step = -1
            state.best_nll, state.best_step, state.best_validation = (
                row["val_nll"],
                row["step"],
                state.validations,
            )
            lost, best = best, self.checkpoint_path(row["step"])
            warn(
                f"{lost}: the best checkpoint so far is lost; {best.name} takes its place until a better one "
                "is found"
            )
        if self.find_best() != best.resolve():
            self._link_best(best)


def find_newest_run(runs: Path) -> Path:
    """Raises UserError when there is none to resume."""
    found = [path for path in runs.glob("*/settings.toml") if not path.parent.name.startswith(".")]
    if not found:
        raise UserError(
            f"--resume: there is no run in {runs}/ to go on with; leave --resume out to start one"
        )
    return max(found, key=lambda path: path.stat().st_mtime).parent


def load_best_weights(run: RunFolder) -> dict[str, torch.Tensor]:
    """Raises UserError when the disk has lost them since they were written."""
    best = run.find_best()
    wrong = find_damage(best) if best else "it is missing"
    if wrong:
        raise UserError(
            f"{run.folder / 'best'}: damaged: {wrong}; --run {run.folder.name} --resume takes the next best"
        )
    return load_file(best / ADAPTER_WEIGHTS_FILE)
