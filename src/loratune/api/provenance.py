"""Find what files say of an adapter: its evaluation, its training run, and the commands that repeat them.

Nothing here is needed for a comparison. What is missing is left out; what belongs to another adapter is left
out with a message.
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
from loratune.evaluation.result import Evaluation
from loratune.report.schema import LogRow, RunSummary, read_evaluation, validate_file
from loratune.system.messages import say
from loratune.system.read import read_json
from loratune.training.run_folder import RunFolder

Metadata = Mapping[str, Any]  # an adapter's loratune.json
RowCounts = Mapping[str, Mapping[str, int]]


def find_evaluation(config: CompareConfig) -> Evaluation | None:
    """Read the evaluation of the same adapter, if there is one.

    Raises:
        UserError: the file was asked for, and is missing or broken.
    """
    path = config.evaluation
    is_asked_for = "evaluation" in config.model_fields_set
    if not is_asked_for and not path.is_file():
        return None
    try:
        evaluation = read_evaluation(path)
    except UserError as error:
        if is_asked_for:
            raise
        say_left_out(error)
        return None
    if not is_same_folder(evaluation.adapter, config.adapter):
        say(
            f"Left out of the report: {path} is about another adapter ({evaluation.adapter}), not "
            f"{config.adapter}"
        )
        return None
    return evaluation


def say_left_out(error: UserError) -> None:
    problems = "; ".join(problem.quote() for problem in error.details)
    say(f"Left out of the report: {problems}")


def is_same_folder(one: str, other: Path) -> bool:
    return os.path.realpath(one.encode("utf-8", "replace").replace(b"\0", b"?")) == os.path.realpath(
        os.fsencode(other)
    )


def read_train_config(metadata: Metadata) -> TrainConfig | None:
    """Return the settings that the adapter was trained with, if loratune trained it and knows all of them."""
    try:
        return TrainConfig(**TrainConfig.raise_micro_tokens(metadata["settings"]))
    except (KeyError, TypeError, AttributeError, ValidationError):
        return None


def read_training_log(metadata: Metadata) -> tuple[list[LogRow], RowCounts]:
    """Read the log of the run that made the adapter, and what became of its data's rows.

    Both are empty where there is no such run.
    """
    trained = read_train_config(metadata)
    if trained is None or trained.run is None:
        return [], {}
    run = RunFolder(RUNS_FOLDER / trained.run)
    if not run.metrics.is_file():
        return [], {}
    try:
        if not is_run_of_adapter(run, trained, metadata):
            say(f"Left out of the report: the run {run.folder} is another one than the adapter's")
            return [], {}
        return read_log(run), read_summary(run).rows
    except UserError as error:
        say_left_out(error)
        return [], {}


def is_run_of_adapter(run: RunFolder, trained: TrainConfig, metadata: Metadata) -> bool:
    """Return whether the run has the adapter's settings, base and data.

    Its name is not enough: another folder has its own runs.
    """
    path = run.folder / "settings.toml"
    run_config = TrainConfig.validate_all(TrainConfig.raise_micro_tokens(read_toml(path)), where=str(path))
    same = {"out": trained.out}
    made_from = read_json(run.folder / "facts.json")
    data = metadata.get("data")
    return (
        run_config.without_start_options().model_copy(update=same)
        == trained.without_start_options().model_copy(update=same)
        and isinstance(made_from, dict)
        and isinstance(data, dict)
        and made_from.get("base") == metadata["base"]["fingerprint"]
        and all(made_from.get(f"{name}.jsonl") == data.get(name) for name in ("train", "val"))
    )


def read_log(run: RunFolder) -> list[LogRow]:
    try:
        rows = run.read_log()
    except (OSError, ValueError) as error:
        raise UserError(f"{run.metrics}: cannot be read: {error}") from error
    return validate_file(
        TypeAdapter(list[LogRow]), rows, run.metrics, remedy="the curve needs the run's own log"
    )


def read_summary(run: RunFolder) -> RunSummary:
    path = run.folder / "summary.json"
    if not path.is_file():
        return RunSummary()
    remedy = "the counts need the run's own summary"
    return validate_file(TypeAdapter(RunSummary), read_json(path), path, remedy=remedy)


def read_versions(metadata: Metadata) -> dict[str, str]:
    """Return the versions of the packages that trained the adapter."""
    versions = metadata.get("versions")
    if not isinstance(versions, dict):
        return {}
    return {str(name): str(version) for name, version in versions.items()}


def build_command_lines(
    config: CompareConfig, metadata: Metadata, evaluation: Evaluation | None
) -> list[str]:
    """Return the command lines that train, evaluate and compare the adapter, as far as files tell."""
    trained = read_train_config(metadata)
    commands = [trained.without_start_options().to_command_line("train")] if trained else []
    if evaluation and (evaluate_config := rebuild_evaluate_config(evaluation, config.evaluation)):
        commands.append(evaluate_config.to_command_line("evaluate"))
    return [*commands, config.to_command_line("compare")]


def rebuild_evaluate_config(evaluation: Evaluation, out: Path) -> EvaluateConfig | None:
    values: dict[str, Any] = {
        "adapter": Path(evaluation.adapter),
        "data": evaluation.data,
        "facts": evaluation.facts,
        "rows": evaluation.rows,
        "generate": evaluation.answered_rows,
        "bare": evaluation.base_bare is not None,
        "out": out,
    }
    try:
        return EvaluateConfig.model_validate(values | evaluation.decoding)
    except (TypeError, ValidationError):
        return None
