"""What the report reads from files: an evaluation and the log of a training run.

They may have been made by another version or by hand, so every field is checked here, once. Names that are
not known are ignored, and what the report can do without has a default.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from loratune.data.jsonl import has_lone_surrogate
from loratune.errors import UserError
from loratune.system.read import read_json


def keep_finite_numbers(measures: Any) -> Any:
    """Only the measures that are finite numbers: others (such as how FinQA's facts were chosen) are told
    elsewhere.
    """
    if not isinstance(measures, Mapping):
        return measures
    return {name: value for name, value in measures.items() if is_finite_number(value)}


def is_finite_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


Measures = Annotated[dict[str, float], BeforeValidator(keep_finite_numbers)]
Count = Annotated[int, Field(ge=0, le=10**15)]
ChartNumber = Annotated[float, Field(ge=-1e6, le=1e6)]  # what a chart has room for; a loss beyond is none


class FileModel(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class ScoreChange(FileModel):
    """Tuned minus base."""

    mean: ChartNumber
    interval: tuple[ChartNumber, ChartNumber]  # 95 %


class SampleSpread(FileModel):
    """A score over several samples of every answer."""

    standard_deviation: ChartNumber


class PairedScores(FileModel, ABC):
    """Base against tuned on the same texts."""

    base: Measures
    tuned: Measures
    base_bare: Measures = {}  # the base without template
    difference: dict[str, ScoreChange] = {}
    over_samples: dict[str, dict[str, SampleSpread]] = {}  # base, base_bare or tuned -> score

    @property
    @abstractmethod
    def text_count(self) -> int:
        """How many texts it was measured on."""


class EvaluationPart(PairedScores):
    """On all held-out rows, or on those of one source or category."""

    rows: Count
    without_target: Count = 0  # rows that have no wanted response: they are in no loss
    answered_rows: Count = 0
    improved: Count
    tied: Count
    regressed: Count
    tie_threshold: float = 0.01  # nats a token

    @property
    def text_count(self) -> int:
        return self.rows


class Forgetting(PairedScores):
    """On plain text, which the training was not about."""

    text: str = ""
    windows: Count

    @property
    def text_count(self) -> int:
        return self.windows


class ModelAnswer(FileModel):
    """One model's answer to an example; there may be none."""

    answer: str | None = None
    ended: str | None = None  # eos | length
    tokens: Count | None = None
    scores: Measures = {}
    result: float | str | None = None  # of a FinQA program


class EvaluatedExample(FileModel):
    id: str = ""
    source: str = ""
    category: str | None = None
    instruction: str
    input: str | None = ""
    wanted: str = ""
    wanted_result: float | str | None = None
    change: ChartNumber | None = None  # nats a token; negative is better
    base: ModelAnswer = ModelAnswer()
    tuned: ModelAnswer = ModelAnswer()


class Evaluation(EvaluationPart):
    adapter: str
    base_model: str = ""
    data: str = ""
    template: str = ""
    facts: str = "retrieved"
    decoding: dict[str, float] = {}
    shortened: dict[str, dict[str, Count]] = {}  # source -> what happened to its rows -> how many
    by_source: dict[str, EvaluationPart] = {}
    by_category: dict[str, EvaluationPart] = {}
    examples: list[EvaluatedExample] = []
    telling: dict[str, list[str]] = {}  # such as largest_gain -> ids of examples
    forgetting: Forgetting | None = None


class LogRow(FileModel):
    """A step's loss, or a validation after it."""

    step: Count
    tokens: Count | None = None
    loss: ChartNumber | None = None
    val_nll: ChartNumber | None = None


class RunSummary(FileModel):
    rows: dict[str, dict[str, Count]] = {}  # as `shortened`, of the training data


def read_evaluation(path: Path) -> Evaluation:
    """Raises UserError, naming the file and the field, when it is missing or not as `loratune evaluate`
    writes it.
    """
    value = read_json(path)
    if has_lone_surrogate(json.dumps(value, ensure_ascii=False)):
        raise UserError(
            f"{path}: a text has a broken character (a lone surrogate); write it again with `loratune "
            "evaluate`"
        )
    return validate_file(TypeAdapter(Evaluation), value, path, "write it again with `loratune evaluate`")


def validate_file(kind: TypeAdapter, value: Any, path: Path, remedy: str):
    """`value`, read from `path`, as a `kind`. Raises UserError with the first thing that is wrong."""
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole file"
        raise UserError(f"{path}: {where}: {first['msg'][0].lower()}{first['msg'][1:]}; {remedy}") from error
