"""The options of `loratune ask`: their types, defaults, help and validation."""

from pathlib import Path

from pydantic import Field

from loratune.config.shared import AdapterConfig, SamplingConfig


class AskConfig(AdapterConfig, SamplingConfig):
    """Answer a question about a page of figures with a program, and carry it out."""

    POSITIONAL = ("question",)

    question: str = Field(description="what to ask, in quotation marks")
    page: Path = Field(
        description="JSON file with the page: pre_text and post_text, lists of sentences, and table, a list "
        "of rows"
    )
    fact_tokens: int | None = Field(
        default=None,
        ge=32,
        description="most tokens of the page's facts to show; default: as in the adapter's training data",
    )
    constrain: bool = Field(default=True, description="constrain the answer to programs that can be executed")
