"""The options of `loratune train`: their types, defaults, help and validation."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from loratune.config.shared import (
    DEFAULT_ADAPTER,
    BaseModelConfig,
    DryRunConfig,
    Duration,
    MachineConfig,
    RowConfig,
    Seed,
)

# Tokens in an optimiser step. A run of fewer than SHORT_RUN_TOKENS learns more in smaller and more steps.
DEFAULT_BATCH_TOKENS, SHORT_RUN_BATCH_TOKENS, SHORT_RUN_TOKENS = 1024, 512, 64_000
# Validation rows. With fewer than MIN_VAL_ROWS it is chance whether they show that training helped.
DEFAULT_VAL_ROWS, MIN_VAL_ROWS = 64, 8
STOP_RULES = ("epochs", "steps", "budget")


class TrainConfig(BaseModelConfig, MachineConfig, RowConfig, DryRunConfig):
    """Train a LoRA adapter on the prepared data."""

    # What a run can never change: the adapter's form, and the order of the data.
    FIXED: ClassVar[tuple[str, ...]] = (
        "rank",
        "alpha",
        "targets",
        "seed",
        "batch_tokens",
        "max_tokens",
        "learn",
    )
    # What belongs to one start of a run and is not recorded with it.
    START_ONLY: ClassVar[tuple[str, ...]] = ("resume", "accept_changes", "dry_run")

    data: Path = Field(default=Path("data"), description="folder with train.jsonl and val.jsonl")
    out: Path = Field(default=DEFAULT_ADAPTER, description="folder for the adapter")
    run: str | None = Field(
        default=None, pattern=r"^\w[\w.-]*$", description="name of the run, runs/NAME; default: date and time"
    )
    resume: bool = Field(default=False, description="resume --run NAME, or the newest run")
    accept_changes: bool = Field(
        default=False,
        description="with --resume: go on although settings, data, base model, packages or the machine have "
        "changed since the run began (never the adapter's form or the order of the data: "
        "--rank, --alpha, --targets, --seed, --batch-tokens, --max-tokens, --learn)",
    )

    targets: list[str] = Field(
        default=["all"],
        min_length=1,
        description="linear layers to adapt: all, attention, mlp, or their names (such as q_proj, mlp.c_fc)",
    )
    rank: int = Field(default=16, ge=1, le=1024, description="LoRA rank")
    alpha: float = Field(
        default=32, gt=0, description="LoRA alpha: the adapter's output is scaled by alpha / rank"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the adapter's input")

    epochs: float | None = Field(
        default=None, gt=0, le=10_000, description="stop after this many passes over the data"
    )
    steps: int | None = Field(default=None, gt=0, description="stop after this many optimiser steps")
    budget: Duration | None = Field(
        default=None, description="stop after this time, such as 10m or 1h30m; 1h if no stop rule is given"
    )
    patience: int = Field(
        default=0,
        ge=0,
        description="stop early after this many validations without improvement; 0 means never",
    )

    learning_rate: float = Field(default=1e-3, gt=0, description="peak learning rate")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="learning rate schedule after the warm-up"
    )
    warmup: float = Field(
        default=0.03, ge=0, lt=1, description="share of the run in which the learning rate rises from 0"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's weight decay")
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm; larger gradients are clipped")
    batch_tokens: int | None = Field(
        default=None,
        ge=64,
        description="tokens in an optimiser step, prompts included; a longer example is a step of its own; "
        f"default: {DEFAULT_BATCH_TOKENS}, or {SHORT_RUN_BATCH_TOKENS} in a run of fewer than "
        f"{SHORT_RUN_TOKENS:,} tokens",
    )
    micro_tokens: int | None = Field(
        default=None,
        ge=64,
        description="tokens in a micro-batch: fewer save memory, the result stays the same; default: what a "
        "short measurement finds best",
    )
    low_memory: bool = Field(
        default=False,
        description="recompute activations in the backward pass instead of storing them (gradient "
        "checkpointing): less memory, 33-40 % slower, same result",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="precision of the large matrix products; auto uses bf16 where a short measurement shows "
        "it to be faster",
    )
    validations: int = Field(
        default=10,
        ge=1,
        description="how many times to measure the validation loss; fewer where that would take more than a "
        "tenth of --budget",
    )
    val_rows: int = Field(
        default=DEFAULT_VAL_ROWS,
        ge=1,
        description="rows in each validation, always the same ones; fewer, but at least "
        f"{MIN_VAL_ROWS}, where measuring them twice would take more than a tenth of --budget",
    )
    seed: Seed = Field(
        default=0, description="random seed of the data order and of the adapter's initial weights"
    )
    repeat: int = Field(
        default=1,
        ge=1,
        le=100,
        description="train this many times, with one seed after another, to see how much the result varies",
    )

    @staticmethod
    def raise_micro_tokens(recorded: dict[str, Any]) -> dict[str, Any]:
        """Return recorded settings with `micro_tokens` of at least `max_tokens`, which resuming asks for.

        Runs on a GPU were once recorded with fewer.
        """
        longest, micro = recorded.get("max_tokens"), recorded.get("micro_tokens")
        is_too_small = isinstance(longest, int) and isinstance(micro, int) and micro < longest
        if is_too_small and recorded.get("device") == "cuda":
            return recorded | {"micro_tokens": longest}
        return recorded

    def without_start_options(self) -> "TrainConfig":
        """Return the settings as they are recorded with a run."""
        return self.model_copy(update=dict.fromkeys(self.START_ONLY, False))

    @classmethod
    def merge_values(cls, from_file: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        """Merge as always, but let a stop rule on the command line replace the file's, whichever it is."""
        if any(rule in given for rule in STOP_RULES):
            from_file = {name: value for name, value in from_file.items() if name not in STOP_RULES}
        return super().merge_values(from_file, given)

    @classmethod
    def find_contradictions(cls, values: dict[str, Any]) -> list[str]:
        problems = []
        if values.get("resume") and str(values.get("repeat", 1)) != "1":
            problems.append(
                "`resume` and `repeat` contradict each other; go on with one of the runs, `run` NAME-seedN"
            )
        if values.get("accept_changes") and not values.get("resume"):
            problems.append("`accept_changes` is for a run that goes on; give `resume`, too, or leave it out")
        if len(rules := [f"`{name}`" for name in STOP_RULES if values.get(name) is not None]) > 1:
            problems.append(f"{' and '.join(rules)} contradict each other; give one of them")
        longest, micro = (
            values.get(name, cls.model_fields[name].default) for name in ("max_tokens", "micro_tokens")
        )
        # Text that is no number, or one of thousands of digits, is refused elsewhere.
        are_numbers = all(str(size).isdecimal() and len(str(size)) < 20 for size in (longest, micro))
        if are_numbers and int(longest) > int(micro):
            problems.append(
                f"`max_tokens` {longest} is more than `micro_tokens` {micro}; lower the first or raise the "
                "second"
            )
        return problems
