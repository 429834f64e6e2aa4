"""What files say of an adapter besides its answers: its evaluation, its training run, and how to make it again.

Nothing here is needed for a comparison. What is missing is left out; what does not belong to the adapter is left out and said.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from loratune.config.base import read_toml
from loratune.config.compare import CompareSettings
from loratune.config.evaluate import EvaluateSettings
from loratune.config.shared import RUNS
from loratune.config.train import TrainSettings
from loratune.errors import UserError
from loratune.models.adapter import described
from loratune.report.schema import Evaluation, Logged, Summary, checked, read_evaluation
from loratune.system.console import say
from loratune.system.read import read_json
from loratune.training.checkpoint import RunFolder

Counts = Mapping[str, Mapping[str, int]]


def evaluation_of(settings: CompareSettings) -> Evaluation | None:
    """The evaluation of the same adapter. Raises UserError when a file that was asked for is missing or broken."""
    path = settings.evaluation
    asked = "evaluation" in settings.model_fields_set
    if not asked and not path.is_file():
        return None
    try:
        evaluation = read_evaluation(path)
    except UserError as error:
        if asked:
            raise
        say(f"Left out of the report: {error}")
        return None
    if not same_folder(evaluation.adapter, settings.adapter):
        say(f"Left out of the report: {path} is about another adapter ({evaluation.adapter}), not {settings.adapter}")
        return None
    return evaluation


def same_folder(one: str, other: Path) -> bool:
    return os.path.realpath(one.encode("utf-8", "replace").replace(b"\0", b"?")) == os.path.realpath(os.fsencode(other))


def trained_with(adapter: Path) -> TrainSettings | None:
    """The settings that the adapter was trained with, if loratune trained it and still knows them all."""
    try:
        return TrainSettings(**TrainSettings.raise_micro_tokens(described(adapter)["settings"]))
    except (KeyError, TypeError, AttributeError, ValidationError):
        return None


def training_of(adapter: Path) -> tuple[list[Logged], Counts]:
    """The log of the run that made the adapter, and what became of its data's rows; both empty where there is no such run."""
    trained = trained_with(adapter)
    run = RunFolder(RUNS / trained.run) if trained and trained.run else None
    if run is None or not run.metrics.is_file():
        return [], {}
    try:
        if not made(run, trained, described(adapter)):
            say(f"Left out of the report: the run {run.folder} is another one than the adapter's")
            return [], {}
        return logged(run), summary_of(run).rows
    except UserError as error:
        say(f"Left out of the report: {error}")
        return [], {}


def made(run: RunFolder, trained: TrainSettings, facts: dict) -> bool:
    """Did the run have the adapter's settings, base and data? A name alone is not enough: another folder has its own runs."""
    path = run.folder / "settings.toml"
    set_then = TrainSettings.checked(TrainSettings.raise_micro_tokens(read_toml(path)), origin=f"{path}: ")
    same = {"out": trained.out}
    made_from = read_json(run.folder / "facts.json")
    data = facts.get("data")
    return (
        set_then.kept().model_copy(update=same) == trained.kept().model_copy(update=same)
        and isinstance(made_from, dict)
        and isinstance(data, dict)
        and made_from.get("base") == facts["base"]["fingerprint"]
        and all(made_from.get(f"{name}.jsonl") == data.get(name) for name in ("train", "val"))
    )


def logged(run: RunFolder) -> list[Logged]:
    try:
        rows = run.rows()
    except (OSError, ValueError) as error:
        raise UserError(f"{run.metrics}: cannot be read: {error}") from error
    return checked(TypeAdapter(list[Logged]), rows, run.metrics, "the curve needs the run's own log")


def summary_of(run: RunFolder) -> Summary:
    path = run.folder / "summary.json"
    return (
        checked(TypeAdapter(Summary), read_json(path), path, "the counts need the run's own summary")
        if path.is_file()
        else Summary()
    )


def versions_of(adapter: Path) -> dict[str, str]:
    """The packages that trained the adapter."""
    versions = described(adapter).get("versions")
    return {str(name): str(version) for name, version in versions.items()} if isinstance(versions, dict) else {}


def commands_of(settings: CompareSettings, evaluation: Evaluation | None) -> list[str]:
    """The command lines that train the adapter, measure it and compare it, as far as files tell."""
    trained = trained_with(settings.adapter)
    commands = [trained.kept().command("train")] if trained else []
    if evaluation and (measured := measured_with(evaluation, settings.evaluation)):
        commands.append(measured.command("evaluate"))
    return [*commands, settings.command("compare")]


def measured_with(evaluation: Evaluation, out: Path) -> EvaluateSettings | None:
    rows = {"data": evaluation.data, "facts": evaluation.facts, "rows": evaluation.rows, "generate": evaluation.answered_rows}
    bare = bool(evaluation.base_bare)
    try:
        return EvaluateSettings(adapter=Path(evaluation.adapter), bare=bare, out=out, **rows, **evaluation.decoding)
    except (TypeError, ValidationError):
        return None
