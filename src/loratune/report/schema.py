"""Read what the report shows from files: an evaluation, and the log and summary of a training run.

They may have been made by another version or by hand, so every field is checked here, once. Names that are
not known are ignored, and what the report can do without has a default.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from loratune.data.json_values import has_lone_surrogate
from loratune.errors import UserError
from loratune.evaluation.result import ChartNumber, Count, Evaluation, FromFile
from loratune.system.read import read_json


@dataclass(frozen=True, kw_only=True)
class LogRow(FromFile):
    """A step's loss, or a validation after it."""

    step: Count
    tokens: Count | None = None
    loss: ChartNumber | None = None
    val_nll: ChartNumber | None = None


@dataclass(frozen=True, kw_only=True)
class RunSummary(FromFile):
    """What became of the training data's rows: source -> what happened -> how many."""

    rows: dict[str, dict[str, Count]] = field(default_factory=dict)


def read_evaluation(path: Path) -> Evaluation:
    """Read what `loratune evaluate` wrote.

    Raises:
        UserError: the file is missing, or not as `loratune evaluate` writes it; names the file and the field.
    """
    value = read_json(path)
    if has_lone_surrogate(json.dumps(value, ensure_ascii=False)):
        raise UserError(
            f"{path}: a text has a broken character (a lone surrogate); write it again with `loratune "
            "evaluate`"
        )
    return validate_file(
        TypeAdapter(Evaluation), value, path, remedy="write it again with `loratune evaluate`"
    )


def validate_file(kind: TypeAdapter, value: Any, path: Path, *, remedy: str):
    """Return `value`, read from `path`, as a `kind`. Raises UserError with the first thing that is wrong."""
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise UserError(f"{path}: {where}: {first['msg'][0].lower()}{first['msg'][1:]}; {remedy}") from error
