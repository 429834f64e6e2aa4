"""Evaluation: what `evaluate` returns, writes to evaluation.json, and every report shows.

The names of the fields are those in the file. Objects that are built here are trusted; `report.schema` checks
those that come from a file against the annotations.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field

from loratune.tasks.base import Result


def keep_finite_numbers(measures: Any) -> Any:
    """Keep the measures that are finite numbers; others, such as `facts`, are shown elsewhere."""
    if not isinstance(measures, Mapping):
        return measures
    return {name: value for name, value in measures.items() if is_finite_number(value)}


def is_finite_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


Measures = Annotated[dict[str, float], BeforeValidator(keep_finite_numbers)]  # metric -> value
Count = Annotated[int, Field(ge=0, le=10**15)]
ChartNumber = Annotated[float, Field(ge=-1e6, le=1e6)]  # what fits on a chart
BASES = ("base", "base_bare", "base_chat")  # the base in the adapter's template, in none, in its own
MODELS = (*BASES, "tuned")


class FromFile:
    """What may be read from a file: every number must be finite."""

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True)
class ScoreChange(FromFile):
    """Tuned minus base, with its 95 % interval."""

    mean: ChartNumber
    interval: tuple[ChartNumber, ChartNumber]

    def to_json(self) -> dict:
        return {"mean": self.mean, "interval": list(self.interval)}


@dataclass(frozen=True, kw_only=True)
class Spread(FromFile):
    """A mean over samples or adapters, and the sample standard deviation."""

    mean: float
    standard_deviation: ChartNumber

    def to_json(self) -> dict:
        return {"mean": self.mean, "standard_deviation": self.standard_deviation}


@dataclass(frozen=True, kw_only=True)
class PairedScores(FromFile, ABC):
    """Base and tuned model on the same texts."""

    base: Measures
    tuned: Measures
    base_bare: Measures | None = None  # the base without template; None where it was not measured
    base_chat: Measures | None = None  # the base in its own chat template; None if it was not measured
    difference: dict[str, ScoreChange] = field(default_factory=dict)  # tuned minus base
    difference_bare: dict[str, ScoreChange] = field(default_factory=dict)  # tuned minus base_bare
    difference_chat: dict[str, ScoreChange] = field(default_factory=dict)  # tuned minus base_chat
    over_samples: dict[str, dict[str, Spread]] = field(default_factory=dict)  # model -> score

    @property
    @abstractmethod
    def text_count(self) -> int:
        """The number of texts that the models were measured on."""

    @property
    def measured_bases(self) -> list[str]:
        """The ways to ask the base that were measured, each once.

        Where the adapter was trained in the base's own chat template, `base` says the same as `base_chat`.
        """
        bases = [name for name in BASES if self.get_measures(name) is not None]
        return bases[1:] if self.base == self.base_chat else bases

    def get_measures(self, model: str) -> Measures | None:
        """Return the measures of `tuned` or of one of the bases."""
        return getattr(self, model)

    def get_difference(self, base: str) -> dict[str, ScoreChange]:
        """Return the changes from one of the bases to `tuned`."""
        return {
            "base": self.difference,
            "base_bare": self.difference_bare,
            "base_chat": self.difference_chat,
        }[base]

    def measures_to_json(self) -> dict:
        return {
            **{name: dict(measures) for name in MODELS if (measures := self.get_measures(name)) is not None},
            **omit_empty(over_samples=to_json(self.over_samples)),
            "difference": to_json(self.difference),
            **({"difference_bare": to_json(self.difference_bare)} if self.base_bare is not None else {}),
            **({"difference_chat": to_json(self.difference_chat)} if self.base_chat is not None else {}),
        }


@dataclass(frozen=True, kw_only=True)
class EvaluationPart(PairedScores):
    """All held-out rows, or those of one source or category."""

    rows: Count
    without_target: Count = 0  # rows without a reference response; no loss includes them
    answered_rows: Count = 0
    split_ids: Count = 0  # ids of the official split whose rows these are; 0 where that is unknown
    improved: Count
    tied: Count
    regressed: Count
    tie_threshold: float = 0.01  # nats a token
    chosen_facts: str = ""  # how the facts in the answered rows were chosen

    @property
    def text_count(self) -> int:
        return self.rows

    def to_json(self) -> dict:
        scores = self.measures_to_json()
        for name in MODELS:
            if self.chosen_facts and name in scores:
                scores[name]["facts"] = self.chosen_facts
        return {
            "rows": self.rows,
            **omit_empty(without_target=self.without_target),
            "answered_rows": self.answered_rows,
            **omit_empty(split_ids=self.split_ids),
            **scores,
            "improved": self.improved,
            "tied": self.tied,
            "regressed": self.regressed,
            "tie_threshold": self.tie_threshold,
        }


@dataclass(frozen=True, kw_only=True)
class Forgetting(PairedScores):
    """Plain text that the training was not about."""

    text: str = ""
    windows: Count

    @property
    def text_count(self) -> int:
        return self.windows

    def to_json(self) -> dict:
        return {"text": self.text, "windows": self.windows, **self.measures_to_json()}


@dataclass(frozen=True, kw_only=True)
class AdapterEvaluation(EvaluationPart):
    """One adapter on all held-out rows."""

    adapter: str
    by_source: dict[str, EvaluationPart] = field(default_factory=dict)
    by_category: dict[str, EvaluationPart] = field(default_factory=dict)
    forgetting: Forgetting | None = None
    # By the loss: `improved`, `regressed` and each example's `change` are against this one.
    strongest_base: str = "base"
    telling: dict[str, list[str]] = field(default_factory=dict)  # such as largest_gain -> ids of examples

    def to_json(self) -> dict:
        return {
            "adapter": self.adapter,
            **super().to_json(),
            "by_source": to_json(self.by_source),
            "by_category": to_json(self.by_category),
            "forgetting": to_json(self.forgetting),
            "strongest_base": self.strongest_base,
            "telling": self.telling,
        }


@dataclass(frozen=True, kw_only=True)
class AnswerResult(FromFile):
    """One scored answer."""

    answer: str | None = None
    ended: str | None = None  # eos | length
    tokens: Count | None = None
    scores: Measures = field(default_factory=dict)
    result: Result | None = None  # the answer's value in the row's task, such as a program's result

    def to_json(self, with_result: bool) -> dict:
        if self.answer is None:
            return {}
        return {
            "answer": self.answer,
            "ended": self.ended,
            "tokens": self.tokens,
            "scores": self.scores,
            **({"result": self.result} if with_result else {}),
        }


@dataclass(frozen=True, kw_only=True)
class ModelExample(AnswerResult):
    """One model on one row. With several samples the answer is the first of them."""

    nll: float | None = None  # nats a token; None without a reference response
    samples: list[AnswerResult] = field(default_factory=list)

    def to_json(self, with_result: bool) -> dict:
        return {
            "nll": self.nll,
            **super().to_json(with_result),
            **omit_empty(samples=[sample.to_json(with_result) for sample in self.samples]),
        }


@dataclass(frozen=True, kw_only=True)
class AdapterExample(FromFile):
    """One adapter on one row."""

    tuned: ModelExample = field(default_factory=ModelExample)
    change: ChartNumber | None = None  # nats a token; negative is better

    def to_json(self, with_result: bool) -> dict:
        return {"tuned": self.tuned.to_json(with_result), "change": self.change}


@dataclass(frozen=True, kw_only=True)
class EvaluatedExample(AdapterExample):
    """One row. With several adapters, `tuned` and `change` are those of the first."""

    id: str = ""
    source: str = ""
    category: str | None = None
    instruction: str
    input: str | None = ""
    wanted: str = ""  # the reference response
    wanted_result: Result | None = None
    target_tokens: Count = 0
    base: ModelExample = field(default_factory=ModelExample)
    base_bare: ModelExample | None = None
    base_chat: ModelExample | None = None
    adapters: list[AdapterExample] = field(default_factory=list)
    has_results: bool = False  # whether answers to it have a value

    def to_json(self) -> dict:
        results = self.has_results
        others = {
            "base_bare": self.base_bare and self.base_bare.to_json(results),
            "base_chat": self.base_chat and self.base_chat.to_json(results),
        }
        return {
            "id": self.id,
            "source": self.source,
            "category": self.category,
            "instruction": self.instruction,
            "input": self.input,
            "wanted": self.wanted,
            **({"wanted_result": self.wanted_result} if results else {}),
            "target_tokens": self.target_tokens,
            "base": self.base.to_json(results),
            **omit_empty(**others),
            **super().to_json(results),
            **omit_empty(adapters=[one.to_json(results) for one in self.adapters]),
        }


@dataclass(frozen=True, kw_only=True)
class Evaluation(AdapterEvaluation):
    """Base and tuned model on held-out rows. With several adapters, its own numbers are the first one's."""

    base_model: str = ""
    data: str = ""
    template: str = ""
    facts: str = "retrieved"
    without_gold_facts: Count = 0  # rows that were left out, because their gold facts are unknown
    decoding: dict[str, float] = field(default_factory=dict)
    shortened: dict[str, dict[str, Count]] = field(default_factory=dict)  # source -> what happened -> rows
    adapters: list[AdapterEvaluation] = field(default_factory=list)  # empty for a single one
    spread: dict[str, Any] = field(default_factory=dict)  # over the adapters, nested as they are
    examples: list[EvaluatedExample] = field(default_factory=list)

    @property
    def all_adapters(self) -> list[AdapterEvaluation]:
        """Return the adapters, or the only one."""
        return self.adapters or [self]

    def to_json(self) -> dict:
        """Return what evaluation.json holds."""
        return {
            "base_model": self.base_model,
            "adapter": self.adapter,
            "data": self.data,
            "template": self.template,
            "facts": self.facts,
            "without_gold_facts": self.without_gold_facts,
            "decoding": self.decoding,
            "shortened": self.shortened,
            **super().to_json(),
            **omit_empty(adapters=[one.to_json() for one in self.adapters], spread=to_json(self.spread)),
            "examples": [example.to_json() for example in self.examples],
        }


def to_json(value: Any) -> Any:
    """Return a value, or a mapping of values at any depth, as JSON has it."""
    if isinstance(value, Mapping):
        return {name: to_json(one) for name, one in value.items()}
    return value.to_json() if hasattr(value, "to_json") else value


def omit_empty(**fields: Any) -> dict[str, Any]:
    """Return the fields that are neither empty, 0 nor None: the file leaves these out."""
    return {name: value for name, value in fields.items() if value}
