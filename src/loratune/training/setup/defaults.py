"""Decide the settings that were left open: by the machine, by the moment, or by a measurement."""

import itertools
import math
from collections.abc import Sequence
from datetime import datetime

import torch

from loratune.config.shared import RUNS_FOLDER
from loratune.config.train import (
    DEFAULT_BATCH_TOKENS,
    MIN_VAL_ROWS,
    SHORT_RUN_BATCH_TOKENS,
    SHORT_RUN_TOKENS,
    TrainConfig,
)
from loratune.data.example import Example
from loratune.data.packing import input_length
from loratune.system.cache import get_cache_folder
from loratune.system.hardware import is_bf16_fast
from loratune.system.memory import available_memory
from loratune.system.messages import say
from loratune.training.autotune import Measurement, list_candidates, run_autotune
from loratune.training.schedule import VALIDATION_TIME_SHARE
from loratune.training.setup.inputs import TrainInputs
from loratune.training.setup.plan import build_step_settings

DEFAULT_BUDGET = 3600.0  # seconds
MEMORY_SHARE = 0.8  # share of the free memory that a run may plan with


def resolve_defaults(config: TrainConfig, inputs: TrainInputs) -> tuple[TrainConfig, Measurement | None]:
    """Resolve the defaults that depend on the machine or the moment; a resumed run has the same values.

    Those that depend on the speed of the whole model stay open; see `choose_step_size`.

    Returns:
        The configuration, and the measurement of autotune: on a CPU, at the beginning of a run.
    """
    has_no_rule = config.epochs is config.steps is config.budget is None
    decided = {
        "model": inputs.model.resolved.name,
        "run": config.run or create_run_name(),
        "budget": DEFAULT_BUDGET if has_no_rule else config.budget,
        "threads": torch.get_num_threads(),
        "device": inputs.device,
    }
    config = config.model_copy(update=decided)
    if config.resume:
        return config, None
    if inputs.device == "cuda":
        precision = "bf16" if config.precision == "auto" else config.precision
        batch_tokens = config.batch_tokens or DEFAULT_BATCH_TOKENS
        micro_tokens = config.micro_tokens or max(batch_tokens, config.max_tokens)
        return config.model_copy(update={"precision": precision, "micro_tokens": micro_tokens}), None
    spec = inputs.model.decoder.spec
    step = build_step_settings(config)
    candidates = list_candidates(
        step,
        precision=config.precision,
        micro_tokens=config.micro_tokens,
        max_tokens=config.max_tokens,
        bf16_is_fast=is_bf16_fast(spec.hidden_size, spec.intermediate_size),
    )
    limit = MEMORY_SHARE * available_memory()
    measurement = run_autotune(
        inputs.model.decoder,
        inputs.examples,
        step,
        candidates=candidates,
        cache=get_cache_folder(),
        memory_limit=limit,
    )
    measured = {"precision": measurement.precision, "micro_tokens": measurement.micro_tokens}
    return config.model_copy(update=measured), measurement


def create_run_name() -> str:
    """Return the date and time as a name, with a number appended if there is already a run of that name."""
    name = datetime.now().strftime("%Y-%m-%d-%H%M%S")
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not (RUNS_FOLDER / name).exists())


def choose_step_size(
    config: TrainConfig, measurement: Measurement | None, inputs: TrainInputs
) -> TrainConfig:
    """Choose the tokens of a step and the number of validation rows, by the whole model's speed."""
    batch_tokens = choose_batch_tokens(config, measurement, inputs.examples)
    val_rows = choose_val_rows(config, measurement, inputs.val_examples)
    if val_rows < config.val_rows:
        say(
            f"Validation: {val_rows} rows instead of {config.val_rows}, so that measuring them takes little "
            "of the `budget`."
        )
    return config.model_copy(update={"batch_tokens": batch_tokens, "val_rows": val_rows})


def choose_batch_tokens(
    config: TrainConfig, measurement: Measurement | None, examples: Sequence[Example]
) -> int:
    """Return the tokens of an optimiser step: those asked for, or the default for a run of this length."""
    if config.batch_tokens:
        return config.batch_tokens
    tokens = math.inf
    if config.budget and measurement:
        tokens = config.budget / measurement.train_seconds
    elif config.epochs:
        tokens = config.epochs * sum(map(input_length, examples))
    return SHORT_RUN_BATCH_TOKENS if tokens < SHORT_RUN_TOKENS else DEFAULT_BATCH_TOKENS


def choose_val_rows(config: TrainConfig, measurement: Measurement | None, examples: Sequence[Example]) -> int:
    """Return the number of validation rows: as asked for, or as many as the budget pays to measure twice."""
    if config.budget is None or measurement is None:
        return config.val_rows
    seconds = measurement.validation_seconds * sum(map(input_length, examples)) / len(examples)
    affordable = max(MIN_VAL_ROWS, int(VALIDATION_TIME_SHARE * config.budget / (2 * seconds)))
    return affordable if affordable < min(config.val_rows, len(examples)) else config.val_rows
