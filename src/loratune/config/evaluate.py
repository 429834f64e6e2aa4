"""The options of `loratune evaluate`: their types, defaults, help and validation."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from loratune.config.shared import DEFAULT_ADAPTER, BaseOverrideConfig, DecodingConfig, DryRunConfig


def is_zero(value: Any) -> bool:
    """Return whether a value, as it was given, is 0; anything but a number is refused elsewhere."""
    try:
        return float(value) == 0
    except (TypeError, ValueError):
        return False


def wrap_in_list(value: Any) -> Any:
    """Let a settings file name one path where several may stand."""
    return [value] if isinstance(value, str | Path) else value


class EvaluateConfig(BaseOverrideConfig, DecodingConfig, DryRunConfig):
    """Measure the base and the tuned model, or several tuned ones, on the same held-out rows."""

    adapter: Annotated[list[Path], BeforeValidator(wrap_in_list)] = Field(
        default=[DEFAULT_ADAPTER],
        min_length=1,
        description="folder with the adapter; several are measured side by side",
    )
    data: str = Field(
        default="data/test.jsonl",
        description="a .jsonl file, or dolly or finqa: that part of data/test.jsonl (FinQA's dev part is in "
        "val.jsonl)",
    )
    facts: Literal["retrieved", "gold"] = Field(
        default="retrieved",
        description="what FinQA's rows show: retrieved facts, or the gold facts alone; rows whose gold "
        "facts are unknown are then left out and counted",
    )
    rows: int = Field(
        default=0, ge=0, description="measure this many rows, drawn evenly from the sources; 0 means all"
    )
    generate: int = Field(
        default=32,
        ge=0,
        description="let both models answer this many of the rows and score the answers; 0 means none",
    )
    samples: int = Field(
        default=1,
        ge=1,
        le=100,
        description="answer each row this many times, with one seed after another; scores are means over "
        "them",
    )
    bare: bool = Field(
        default=True,
        description="also measure the base without template: its prompt is the instruction and the input "
        "alone",
    )
    forgetting: Path | None = Field(
        default=None,
        description="text file (UTF-8) on which to measure what the tuned model has forgotten; default: "
        "prose of FinQA's test pages",
    )
    constrain: bool = Field(
        default=False, description="constrain the answers to FinQA's rows to programs that can be executed"
    )
    max_tokens: int = Field(
        default=1024,
        ge=64,
        description="longest example, in tokens; longer ones are truncated, the input first",
    )
    out: Path = Field(default=Path("evaluation.json"), description="file to write")

    @classmethod
    def find_contradictions(cls, values: dict[str, Any]) -> list[str]:
        if str(values.get("samples", 1)) == "1" or not is_zero(values.get("temperature", 0)):
            return []
        return [
            "`samples`: at `temperature` 0 all answers would be the same; raise it, for example to 1, or "
            "leave `samples` out"
        ]
