"""What a training run decides and loads before its first step: from a configuration to a plan and a model."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import torch

from loratune.config.base import read_toml
from loratune.config.shared import RUNS_FOLDER
from loratune.config.train import (
    DEFAULT_BATCH_TOKENS,
    MIN_VAL_ROWS,
    SHORT_RUN_BATCH_TOKENS,
    SHORT_RUN_TOKENS,
    TrainConfig,
)
from loratune.data.example import Example, Record
from loratune.data.jsonl import read_records
from loratune.data.packing import count_steps, input_length
from loratune.data.sample import draw_stratified_sample
from loratune.data.template import Template, load_template
from loratune.data.token_cache import load_or_tokenize, make_token_cache_key
from loratune.data.tokenize import tokenize_records
from loratune.errors import UserError
from loratune.models.load import PRECISIONS, LoadedModel, load_model, mention_chat_template, set_precision
from loratune.models.lora import add_lora
from loratune.models.resolve import ResolvedModel, resolve_model
from loratune.models.tokenizer import Tokenizer
from loratune.system.atomic import refuse_unwritable
from loratune.system.cache import get_cache_folder
from loratune.system.device import choose_device
from loratune.system.hardware import CPU_REMEDY, is_bf16_fast
from loratune.system.memory import available_memory, return_freed_memory_at_once
from loratune.system.messages import say
from loratune.system.read import hash_file, read_json
from loratune.training.autotune import (
    Measurement,
    RunEstimate,
    estimate_run,
    list_candidates,
    measure_all_layers,
    measure_memory_besides_weights,
    run_autotune,
)
from loratune.training.plan import AdapterSettings, StepSettings, TrainPlan
from loratune.training.resume import check_changes, collect_run_inputs, find_changes, has_bos_prompts
from loratune.training.run_folder import RunFolder, find_newest_run
from loratune.training.schedule import VALIDATION_TIME_SHARE, StopRule

DEFAULT_BUDGET = 3600.0  # seconds
MEMORY_SHARE = 0.8  # share of the free memory that a run may plan with
# Settings whose default leaves the choice to the machine or the moment; it is made once in a run.
RESOLVED_ONCE = ("model", "run", "precision", "micro_tokens", "threads", "device")


@dataclass(frozen=True)
class TrainInputs:
    """All that a run reads: the base model, and the data as tokens."""

    device: str
    template: Template
    model: LoadedModel  # in fp32 on the CPU, without an adapter
    data_hashes: dict[str, str]  # sha256 of train.jsonl and val.jsonl
    preparation: dict  # how FinQA's prompts were made, where that is known
    records: list[Record]
    examples: list[Example]
    truncation_counts: dict[str, dict[str, int]]  # source: what the limit on length did to its rows
    val_examples: list[Example]  # all of them


@dataclass(frozen=True)
class Setup:
    """All that is decided and loaded before the first step."""

    config: TrainConfig  # as it is kept with the run: nothing is left to the machine or the moment
    plan: TrainPlan
    inputs: TrainInputs  # the model has its new adapter, its precision and its device
    adapted_layers: list[str]
    val_examples: list[Example]  # those that are measured
    estimate: RunEstimate | None  # none on a GPU and for a resumed run


def set_up(config: TrainConfig) -> Setup:
    """Decide and load everything that a run needs.

    Raises:
        UserError: for everything that can be found wrong before the work begins.
    """
    inputs = load_inputs(config)
    besides_weights = measure_memory_besides_weights(inputs.model.decoder)
    config, measurement = resolve_defaults(config, inputs)
    layers = build_model(config, inputs)
    if measurement:
        step = build_step_settings(config)
        cache, decoder = get_cache_folder(), inputs.model.decoder
        measurement = measure_all_layers(decoder, inputs.examples, step, measurement, cache)
    config = choose_step_size(config, measurement, inputs)
    # Runs with other seeds are compared on the same rows.
    val_examples = draw_stratified_sample(inputs.val_examples, config.val_rows, seed=0)
    plan = make_plan(config, inputs)
    estimate = None
    if measurement:
        estimate = estimate_run(measurement, besides_weights, plan, inputs.examples, val_examples)
    return Setup(config, plan, inputs, layers, val_examples, estimate)


def load_inputs(config: TrainConfig) -> TrainInputs:
    """Read the data and the base model, and check that they fit together and to the run that goes on."""
    refuse_unwritable(config.out, folder=True)
    device = choose_device(config.threads, config.device, choose_device_remedy(config))
    if config.low_memory:
        return_freed_memory_at_once()
    template = load_template(config.template)
    hashes, records, val_records = read_data(config.data)
    resolved = resolve_model(config.model)
    if config.resume:
        refuse_changes(config, resolved, template, hashes, device)  # before the long work
    model = load_model(resolved)
    mention_chat_template(model, template.name)
    model = replace(model, tokenizer=resolve_bos(config, model.tokenizer))
    tokenizer, most = model.tokenizer, model.decoder.spec.max_positions
    if config.max_tokens > most:
        problem = f"this model has only {most} positions"
        raise UserError(
            problem, setting="max_tokens", value=config.max_tokens, remedy=f"choose at most {most}"
        )
    key = make_token_cache_key(
        hashes["train"], resolved.content, template, config.max_tokens, bos=tokenizer.bos
    )
    examples, counts = load_or_tokenize(
        get_cache_folder(), key, lambda: tokenize_records(records, template, tokenizer, config.max_tokens)
    )
    val_examples, _ = tokenize_records(val_records, template, tokenizer, config.max_tokens)
    examples, val_examples = keep_with_target(examples), keep_with_target(val_examples)
    refuse_no_examples(config, examples, val_examples)
    return TrainInputs(
        device=device,
        template=template,
        model=model,
        data_hashes=hashes,
        preparation=read_preparation(config.data),
        records=records,
        examples=examples,
        truncation_counts=counts,
        val_examples=val_examples,
    )


def choose_device_remedy(config: TrainConfig) -> str:
    if not config.resume:
        return CPU_REMEDY
    return f"to go on without it: {format_resume_command(config.run)} --device cpu --accept-changes"


def format_resume_command(run: str | None) -> str:
    return f"loratune train --run {run} --resume"


def read_data(folder: Path) -> tuple[dict[str, str], list[Record], list[Record]]:
    """Return the files' sha256, the training records and the validation records.

    The files may be changed or deleted while the run goes on; they are not read again.
    """
    files = [folder / "train.jsonl", folder / "val.jsonl"]
    missing = [path for path in files if not path.is_file()]
    if missing:
        problem = "there is no such file; make it with `loratune prepare`"
        raise UserError(*(f"{path}: {problem}" for path in missing))
    train, val = map(read_records, files)
    return {path.stem: hash_file(path) for path in files}, train, val


def read_preparation(folder: Path) -> dict:
    """Return how FinQA's prompts were made, so that `ask` can make them alike; empty where nobody knows."""
    try:
        settings = read_json(folder / "prepare_report.json")["settings"]
        return {name: settings[name] for name in ("fact_tokens", "finqa_target")}
    except (UserError, LookupError, TypeError):
        return {}  # data that the user made in another way is no mistake


def keep_with_target(examples: list[Example]) -> list[Example]:
    return [example for example in examples if example.response]


def refuse_no_examples(config: TrainConfig, examples: list[Example], val_examples: list[Example]) -> None:
    if not examples:
        raise UserError(
            f"{config.data / 'train.jsonl'}: no row has a response that fits in `max_tokens` "
            f"{config.max_tokens}"
        )
    if not val_examples:
        raise UserError(f"{config.data / 'val.jsonl'}: no usable rows; prepare with a larger `val_fraction`")


def resolve_bos(config: TrainConfig, tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer, without BOS for a run that began without."""
    if config.resume and not has_bos_prompts(run_folder_of(config)):
        return tokenizer.without_bos()
    return tokenizer


def run_folder_of(config: TrainConfig) -> RunFolder:
    assert config.run is not None, "the run has its name by now"
    return RunFolder(RUNS_FOLDER / config.run)


def resume_config(asked: TrainConfig) -> TrainConfig:
    """Return the configuration of the run to go on with, and over it what is asked now."""
    folder = RUNS_FOLDER / asked.run if asked.run else find_newest_run(RUNS_FOLDER)
    path = folder / "settings.toml"
    if not path.is_file():
        problem = f"there is no run {folder}; leave `resume` out to start it"
        raise UserError(problem, setting="resume")
    kept, defaults = TrainConfig.raise_micro_tokens(read_toml(path)), TrainConfig()
    began = TrainConfig.validate_all(kept, where=str(path))
    given = {
        name
        for name in asked.model_fields_set
        if name not in RESOLVED_ONCE or getattr(asked, name) != getattr(defaults, name)
    }
    if began.budget and asked.val_rows >= began.val_rows:
        given.discard("val_rows")  # a short budget may have made them fewer when the run began
    values = TrainConfig.merge_values(kept, asked.model_dump(include=given))
    return TrainConfig.validate_all(values | {"run": folder.name}, where=str(path))


def refuse_changes(
    config: TrainConfig, resolved: ResolvedModel, template: Template, hashes: dict[str, str], device: str
) -> None:
    """Raise UserError for what has changed since the run began and was not accepted."""
    tokenizer = resolve_bos(config, Tokenizer.load(resolved.folder))
    now = collect_run_inputs(
        resolved,
        template,
        data=hashes,
        settings=dump_kept_settings(config),
        device=device,
        bos=tokenizer.bos,
    )
    changes = find_changes(read_earlier_inputs(config), now)
    check_changes(changes, accepted=config.accept_changes, fixed=TrainConfig.FIXED)


def dump_kept_settings(config: TrainConfig) -> dict:
    """Return the settings that a run's adapter depends on, as JSON has them."""
    return config.without_start_options().model_dump(mode="json", exclude={"run", "out"})


def read_earlier_inputs(config: TrainConfig) -> dict:
    """Return what the run was made from when it began, or after the last accepted change."""
    then = run_folder_of(config).read_run_inputs()
    return then | {"settings": TrainConfig.raise_micro_tokens(then["settings"])}


def resolve_defaults(config: TrainConfig, inputs: TrainInputs) -> tuple[TrainConfig, Measurement | None]:
    """Decide every default that depends on the machine or the moment, so that a resumed run decides the same.

    Only what the whole model's speed decides stays open.

    Returns:
        The configuration, and what was measured: on a CPU, at the beginning of a run.
    """
    has_no_rule = config.epochs is config.steps is config.budget is None
    decided = {
        "model": inputs.model.found.name,
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
        inputs.model.decoder, inputs.examples, step, candidates, get_cache_folder(), limit
    )
    taken = {"precision": measurement.precision, "micro_tokens": measurement.micro_tokens}
    return config.model_copy(update=taken), measurement


def create_run_name() -> str:
    """Return date and time; with a number where the clock was set back or two runs begin in one second."""
    name = datetime.now().strftime("%Y-%m-%d-%H%M%S")
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not (RUNS_FOLDER / name).exists())


def build_model(config: TrainConfig, inputs: TrainInputs) -> list[str]:
    """Give the base model its precision, its device and a new adapter; return the adapted layers' names."""
    decoder = inputs.model.decoder
    set_precision(decoder, PRECISIONS[config.precision]).to(inputs.device)
    decoder.gradient_checkpointing = config.low_memory
    return add_lora(decoder, config.rank, config.alpha, config.dropout, config.targets, config.seed)


def choose_step_size(
    config: TrainConfig, measurement: Measurement | None, inputs: TrainInputs
) -> TrainConfig:
    """Decide what the whole model's speed decides: a step's tokens, and how many rows are validated on."""
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
    """Return what was asked for, or what suits the run's length; the default where that is not known."""
    if config.batch_tokens:
        return config.batch_tokens
    tokens = math.inf
    if config.budget and measurement:
        tokens = config.budget / measurement.train_seconds
    elif config.epochs:
        tokens = config.epochs * sum(map(input_length, examples))
    return SHORT_RUN_BATCH_TOKENS if tokens < SHORT_RUN_TOKENS else DEFAULT_BATCH_TOKENS


def choose_val_rows(config: TrainConfig, measurement: Measurement | None, examples: Sequence[Example]) -> int:
    """Return what was asked for, or as many rows like these as a time budget pays to measure twice."""
    if config.budget is None or measurement is None:
        return config.val_rows
    seconds = measurement.validation_seconds * sum(map(input_length, examples)) / len(examples)
    payable = max(MIN_VAL_ROWS, int(VALIDATION_TIME_SHARE * config.budget / (2 * seconds)))
    return payable if payable < min(config.val_rows, len(examples)) else config.val_rows


def build_step_settings(config: TrainConfig) -> StepSettings:
    adapter = AdapterSettings(
        rank=config.rank,
        alpha=config.alpha,
        dropout=config.dropout,
        targets=tuple(config.targets),
        seed=config.seed,
    )
    batch_tokens = config.batch_tokens or DEFAULT_BATCH_TOKENS
    return StepSettings(adapter, batch_tokens, config.low_memory, config.seed)


def make_plan(config: TrainConfig, inputs: TrainInputs) -> TrainPlan:
    """Return the plan of a configuration in which everything is decided."""
    assert config.micro_tokens is not None, "decided by now"
    return TrainPlan(
        step=build_step_settings(config),
        stop_rule=build_stop_rule(config, inputs.examples),
        learning_rate=config.learning_rate,
        schedule=config.schedule,
        warmup=config.warmup,
        weight_decay=config.weight_decay,
        clip=config.clip,
        patience=config.patience,
        micro_tokens=config.micro_tokens,
        max_tokens=config.max_tokens,
        precision=config.precision,
        device=inputs.device,
        validations=config.validations,
        val_rows=config.val_rows,
    )


def build_stop_rule(config: TrainConfig, examples: Sequence[Example]) -> StopRule:
    if config.epochs:
        assert config.batch_tokens and config.micro_tokens, "decided by now"
        lengths = [input_length(example) for example in examples]
        steps = count_steps(config.epochs, lengths, config.batch_tokens, config.micro_tokens, config.seed)
        return StopRule(steps=steps)
    return StopRule(steps=config.steps, seconds=config.budget)
