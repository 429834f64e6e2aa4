"""What files say of an adapter besides its answers: its evaluation, its training run, and how to make it
again.

Nothing here is needed for a comparison. What is missing is left out; what does not belong to the adapter is
left out and said.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from loratune.config.base import read_toml
from loratune.config.compare import CompareConfig
from loratune.config.evaluate import EvaluateConfig
from loratune.config.shared import RUNS_FOLDER
from loratune.config.train import TrainConfig
from loratune.errors import UserError
from loratune.models.adapter import read_adapter_metadata
from loratune.report.schema import Evaluation, LogRow, RunSummary, read_evaluation, validate_file
from loratune.system.console import describe_error, say
from loratune.system.read import read_json
from loratune.training.run_folder import RunFolder

RowCounts = Mapping[str, Mapping[str, int]]


def find_evaluation(settings: CompareConfig) -> Evaluation | None:
    """The evaluation of the same adapter. Raises UserError when a file that was asked for is missing or
    broken.
    """
    path = settings.evaluation
    asked = "evaluation" in settings.model_fields_set
    if not asked and not path.is_file():
        return None
    try:
        evaluation = read_evaluation(path)
    except UserError as error:
        if asked:
            raise
        say(f"Left out of the report: {describe_error(error)}")
        return None
    if not is_same_folder(evaluation.adapter, settings.adapter):
        say(
            f"Left out of the report: {path} is about another adapter ({evaluation.adapter}), not "
            f"{settings.adapter}"
        )
        return None
    return evaluation


def is_same_folder(one: str, other: Path) -> bool:
    return os.path.realpath(one.encode("utf-8", "replace").replace(b"\0", b"?")) == os.path.realpath(
        os.fsencode(other)
    )


def read_train_config(adapter: Path) -> TrainConfig | None:
    """The settings that the adapter was trained with, if loratune trained it and still knows them all."""
    try:
        return TrainConfig(**TrainConfig.raise_micro_tokens(read_adapter_metadata(adapter)["settings"]))
    except (KeyError, TypeError, AttributeError, ValidationError):
        return None


def read_training_log(adapter: Path) -> tuple[list[LogRow], RowCounts]:
    """The log of the run that made the adapter, and what became of its data's rows; both empty where there is
    no such run.
    """
    trained = read_train_config(adapter)
    if trained is None or trained.run is None:
        return [], {}
    run = RunFolder(RUNS_FOLDER / trained.run)
    if not run.metrics.is_file():
        return [], {}
    try:
        if not is_run_of_adapter(run, trained, read_adapter_metadata(adapter)):
            say(f"Left out of the report: the run {run.folder} is another one than the adapter's")
            return [], {}
        return read_log(run), read_summary(run).rows
    except UserError as error:
        say(f"Left out of the report: {describe_error(error)}")
        return [], {}


def is_run_of_adapter(run: RunFolder, trained: TrainConfig, facts: dict) -> bool:
    """Did the run have the adapter's settings, base and data? A name alone is not enough: another folder has
    its own runs.
    """
    path = run.folder / "settings.toml"
    set_then = TrainConfig.validate_all(TrainConfig.raise_micro_tokens(read_toml(path)), where=str(path))
    same = {"out": trained.out}
    made_from = read_json(run.folder / "facts.json")
    data = facts.get("data")
    return (
        set_then.without_start_options().model_copy(update=same)
        == trained.without_start_options().model_copy(update=same)
        and isinstance(made_from, dict)
        and isinstance(data, dict)
        and made_from.get("base") == facts["base"]["fingerprint"]
        and all(made_from.get(f"{name}.jsonl") == data.get(name) for name in ("train", "val"))
    )


def read_log(run: RunFolder) -> list[LogRow]:
    try:
        rows = run.read_log()
    except (OSError, ValueError) as error:
        raise UserError(f"{run.metrics}: cannot be read: {error}") from error
    return validate_file(TypeAdapter(list[LogRow]), rows, run.metrics, "the curve needs the run's own log")


def read_summary(run: RunFolder) -> RunSummary:
    path = run.folder / "summary.json"
    return (
        validate_file(TypeAdapter(RunSummary), read_json(path), path, "the counts need the run's own summary")
        if path.is_file()
        else RunSummary()
    )


def read_versions(adapter: Path) -> dict[str, str]:
    """The packages that trained the adapter."""
    versions = read_adapter_metadata(adapter).get("versions")
    return (
        {str(name): str(version) for name, version in versions.items()} if isinstance(versions, dict) else {}
    )


def build_command_lines(settings: CompareConfig, evaluation: Evaluation | None) -> list[str]:
    """The command lines that train the adapter, measure it and compare it, as far as files tell."""
    trained = read_train_config(settings.adapter)
    commands = [trained.without_start_options().to_command_line("train")] if trained else []
    if evaluation and (measured := rebuild_evaluate_config(evaluation, settings.evaluation)):
        commands.append(measured.to_command_line("evaluate"))
    return [*commands, settings.to_command_line("compare")]


def rebuild_evaluate_config(evaluation: Evaluation, out: Path) -> EvaluateConfig | None:
    values: dict[str, Any] = {
        "adapter": Path(evaluation.adapter),
        "data": evaluation.data,
        "facts": evaluation.facts,
        "rows": evaluation.rows,
        "generate": evaluation.answered_rows,
        "bare": bool(evaluation.base_bare),
        "out": out,
    }
    try:
        return EvaluateConfig.model_validate(values | evaluation.decoding)
    except (TypeError, ValidationError):
        return None
