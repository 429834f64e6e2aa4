"""The options of `loratune prepare`: their types, defaults, help and validation."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from loratune.config.shared import TEMPLATE_HELP, BaseModelConfig, DryRunConfig, Seed


class PrepareConfig(BaseModelConfig, DryRunConfig):
    """Turn Dolly 15k, FinQA or your own files into training, validation and test data."""

    out: Path = Field(default=Path("data"), description="folder to write to")
    data: list[str] = Field(
        default=["dolly", "finqa"],
        min_length=1,
        description="what to prepare: dolly, finqa, .jsonl/.json/.csv/.tsv/.parquet files or folders of "
        "them (files named val or test stay apart), a folder with FinQA's own train.json, "
        "dev.json and test.json, or a Hugging Face data set (owner/name)",
    )
    val: list[str] = Field(
        default=[],
        description="your own files, or folders of them, for validation: kept whole, never trained on",
    )
    test: list[str] = Field(
        default=[],
        description="your own files, or folders of them, for testing: kept whole, never trained on",
    )
    source: Literal["auto", "hub", "snapshot"] = Field(
        default="auto",
        description="where dolly and finqa come from; auto uses the hub if it answers within seconds, else "
        "the shipped snapshot",
    )
    columns: dict[str, str] = Field(
        default={},
        description="which of your columns is which, as instruction=question output=answer [input=context "
        "group=page], or messages=chat, or text=story",
    )
    skip_bad: bool = Field(
        default=False,
        description="leave out unusable rows of your own data, count them, and list them in "
        "prepare_report.json, instead of refusing the file",
    )
    finqa_target: Literal["program", "answer"] = Field(
        default="program", description="what FinQA's response is: the program or the answer"
    )
    fact_tokens: int = Field(
        default=320, ge=32, description="most tokens of a FinQA page's facts to keep, the best ranked first"
    )
    max_tokens: int = Field(
        default=1024,
        ge=64,
        description="longest example, in tokens; longer ones are truncated, the input first or a "
        "conversation's oldest turns, and counted",
    )
    val_fraction: float = Field(
        default=0.05,
        ge=0,
        lt=0.5,
        description="share of the groups held out for validation, and as much again for testing",
    )
    template: str = Field(default="auto", description=f"{TEMPLATE_HELP}; here for counting tokens")
    learn: Literal["all", "last"] = Field(
        default="all", description="which answers of a conversation are learned; here for counting tokens"
    )
    seed: Seed = Field(default=0, description="random seed of the split")
