"""The options of `loratune preview`: their types, defaults, help and validation."""

from pathlib import Path

from pydantic import Field

from loratune.config.shared import BaseModelConfig, RowConfig, Seed


class PreviewConfig(BaseModelConfig, RowConfig):
    """Show rows as the model sees them: the prompt, what is learned, and what was cut."""

    data: Path = Field(
        default=Path("data/train.jsonl"), description="a .jsonl file, or a folder with train.jsonl"
    )
    rows: int = Field(default=4, ge=1, description="rows to show, drawn evenly from the sources")
    source: str | None = Field(default=None, description="only rows of this source, such as dolly or finqa")
    cut: bool = Field(
        default=False, description="only rows that were truncated or dropped, the first ones in the file"
    )
    seed: Seed = Field(default=0, description="random seed of the choice of rows")
