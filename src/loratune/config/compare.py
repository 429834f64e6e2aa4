"""The options of `loratune compare`: their types, defaults, help and validation."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from loratune.config.shared import (
    PROMPTS_HELP,
    AdapterConfig,
    DecodingConfig,
    DryRunConfig,
    RepetitionPenalty,
)


class CompareConfig(AdapterConfig, DecodingConfig, DryRunConfig):
    """Let the base and the tuned model answer the same prompts, side by side."""

    repetition_penalty: RepetitionPenalty = Field(
        default=1.1,  # without it, greedy answers of small models repeat themselves
        description="of both models: make tokens that the answer already contains less likely; 1 means off",
    )
    prompts: Path | None = Field(default=None, description=PROMPTS_HELP)
    out: Path = Field(
        default=Path("model_comparison.json"), description="file to write; the report is written beside it"
    )
    format: Literal["html", "md", "both"] = Field(
        default="html", description="report format: an HTML page, Markdown (for an issue), or both"
    )
    evaluation: Path = Field(
        default=Path("evaluation.json"),
        description="what `loratune evaluate` wrote, for the report; left out if it is about another adapter",
    )
