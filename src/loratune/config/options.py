"""The options of the Python API: the settings of each command that a caller may pass by name.

They carry names and types only; the defaults are those of the configurations (`loratune train --help`). A
test keeps both alike.
"""

from collections.abc import Sequence
from os import PathLike
from typing import TypedDict

AnyPath = str | PathLike[str]


class PrepareOptions(TypedDict, total=False):
    """Options of `loratune.prepare`."""

    model: str
    val: Sequence[AnyPath]
    test: Sequence[AnyPath]
    source: str
    columns: dict[str, str]
    skip_bad: bool
    finqa_target: str
    fact_tokens: int
    max_tokens: int
    val_fraction: float
    template: str
    learn: str
    seed: int


class TrainOptions(TypedDict, total=False):
    """Options of `loratune.train`."""

    out: AnyPath
    run: str
    resume: bool
    accept_changes: bool
    targets: Sequence[str]
    rank: int
    alpha: float
    dropout: float
    epochs: float
    steps: int
    budget: str | float
    patience: int
    learning_rate: float
    schedule: str
    warmup: float
    weight_decay: float
    clip: float
    batch_tokens: int
    micro_tokens: int
    low_memory: bool
    precision: str
    validations: int
    val_rows: int
    seed: int
    max_tokens: int
    template: str
    learn: str
    threads: int
    device: str


class DecodingOptions(TypedDict, total=False):
    """Options of an answer, wherever models answer."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    seed: int


class EvaluateOptions(DecodingOptions, total=False):
    """Options of `loratune.evaluate`."""

    facts: str
    rows: int
    generate: int
    samples: int
    bare: bool
    own_template: bool
    forgetting: AnyPath
    constrain: bool
    max_tokens: int
    batch_size: int


class CompareOptions(DecodingOptions, total=False):
    """Options of `loratune.compare`."""

    base_template: str
    batch_size: int
