"""What `loratune evaluate` may be asked."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from loratune.config.shared import DEFAULT_ADAPTER, BaseOverrideConfig, DecodingConfig, DryRunConfig


def is_zero(value: Any) -> bool:
    """Of a value as it was given; what is no number is said elsewhere."""
    try:
        return float(value) == 0
    except (TypeError, ValueError):
        return False


def wrap_in_list(value: Any) -> Any:
    """One path where several may stand, as a settings file would name it."""
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
        description="what FinQA's rows show: the facts that were retrieved, or the gold ones alone; "
        "rows whose gold facts nobody knows are left out then, and counted",
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
        description="answer each row this often, with one seed after the other; scores are means over them",
    )
    bare: bool = Field(
        default=True,
        description="measure the base with a bare prompt, too: the instruction and the input alone",
    )
    forgetting: Path | None = Field(
        default=None,
        description="text file (UTF-8) on which to measure what the tuned model has forgotten; default: "
        "prose of FinQA's test pages",
    )
    constrain: bool = Field(
        default=False, description="let FinQA's rows be answered only with programs that can be carried out"
    )
    max_tokens: int = Field(default=1024, ge=64, description="most tokens in a row")
    out: Path = Field(default=Path("evaluation.json"), description="file to write")

    @classmethod
    def find_contradictions(cls, values: dict[str, Any]) -> list[str]:
        if str(values.get("samples", 1)) == "1" or not is_zero(values.get("temperature", 0)):
            return []
        return [
            "--samples: at --temperature 0 all answers would be the same; raise it, such as to 1, or leave "
            "--samples out"
        ]
