"""What a training run decides and loads before its first step."""

import itertools
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import torch

from loratune.commands.device import choose_device
from loratune.commands.loading import mention_chat_template
from loratune.commands.resuming import (
    check_changes,
    collect_run_inputs,
    format_resume_command,
    has_bos_prompts,
)
from loratune.config.shared import RUNS_FOLDER
from loratune.config.train import DEFAULT_BATCH_TOKENS, TrainConfig
from loratune.data.example import Example, Record
from loratune.data.jsonl import read_records
from loratune.data.packing import count_steps, input_length
from loratune.data.sample import draw_stratified_sample
from loratune.data.template import Template, load_template
from loratune.data.token_cache import load_or_tokenize, make_token_cache_key
from loratune.data.tokenize import tokenize_records
from loratune.errors import UserError
from loratune.models.load import PRECISIONS, LoadedModel, load_model, set_precision
from loratune.models.lora import add_lora
from loratune.models.resolve import resolve_model
from loratune.models.tokenizer import Tokenizer
from loratune.system.atomic import refuse_unwritable
from loratune.system.cache import get_cache_folder
from loratune.system.console import say
from loratune.system.hardware import is_bf16_fast
from loratune.system.memory import available_memory, return_freed_memory_at_once
from loratune.system.read import hash_file, read_json
from loratune.training.autotune import (
    Measurement,
    RunEstimate,
    choose_batch_tokens,
    choose_val_rows,
    estimate_run,
    list_candidates,
    measure_all_layers,
    measure_memory_besides_weights,
    run_autotune,
)
from loratune.training.schedule import StopRule

DEFAULT_BUDGET = 3600.0  # seconds
MEMORY_SHARE = 0.8  # share of the free memory that a run may plan with


@dataclass(frozen=True)
class Setup:
    """All that is decided and loaded before the first step. The base has the new adapter on it."""

    settings: TrainConfig  # nothing is left to the machine or the moment
    device: str
    template: Template
    base: LoadedModel
    layers: list[str]  # that are adapted
    data_info: dict  # what the data is, and how it was prepared
    records: list[Record]
    rows: list[Example]
    counts: dict  # what the limit on length did to the rows, for each source
    val_rows: list[Example]
    expected: RunEstimate | None  # none on a GPU and for a resumed run


def set_up(settings: TrainConfig) -> Setup:
    """Raises UserError for everything that can be found wrong before the work begins."""
    refuse_unwritable(settings.out, folder=True)
    resume = format_resume_command(settings.run) if settings.resume else ""
    device = choose_device(settings.threads, settings.device, resume)
    if settings.low_memory:
        return_freed_memory_at_once()
    template = load_template(settings.template)
    made_of, records, val_records = read_data(settings)
    found = resolve_model(settings.model)
    if settings.resume:
        begun = resolve_bos(settings, Tokenizer.load(found.folder))
        check_changes(
            settings, collect_run_inputs(settings, found, made_of, template, device, bos=begun.bos)
        )  # before the long work
    base = load_model(found)
    mention_chat_template(base, template)
    base = replace(base, tokenizer=resolve_bos(settings, base.tokenizer))
    refuse_long_rows(settings, base)
    key = make_token_cache_key(
        made_of["data"]["train"], found.content, template, settings.max_tokens, bos=base.tokenizer.bos
    )
    rows, counts = load_or_tokenize(
        get_cache_folder(),
        key,
        lambda: tokenize_records(records, template, base.tokenizer, settings.max_tokens),
    )
    all_val_rows, _ = tokenize_records(val_records, template, base.tokenizer, settings.max_tokens)
    rows, all_val_rows = keep_rows_with_target(rows), keep_rows_with_target(all_val_rows)
    refuse_no_rows(settings, rows, all_val_rows)
    besides_weights = measure_memory_besides_weights(base.decoder)
    settings, trial = resolve_defaults(settings, base, rows, device)
    set_precision(base.decoder, PRECISIONS[settings.precision]).to(device)
    base.decoder.gradient_checkpointing = settings.low_memory
    layers = add_lora(
        base.decoder, settings.rank, settings.alpha, settings.dropout, settings.targets, settings.seed
    )
    trial = trial and measure_all_layers(base.decoder, rows, settings, trial, get_cache_folder())
    settings = choose_step_size(settings, trial, rows, all_val_rows)
    val_rows = draw_stratified_sample(
        all_val_rows, settings.val_rows, seed=0
    )  # trainings with other seeds are compared on the same
    expected = trial and estimate_run(
        trial, besides_weights, settings, build_stop_rule(settings, rows), rows, val_rows
    )
    return Setup(settings, device, template, base, layers, made_of, records, rows, counts, val_rows, expected)


def resolve_bos(settings: TrainConfig, tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, without BOS for a run that was begun without."""
    return tokenizer.without_bos() if settings.resume and not has_bos_prompts(settings) else tokenizer


def read_data(settings: TrainConfig) -> tuple[dict, list[Record], list[Record]]:
    """What the files are and how they were prepared, the training records and the validation records.

    The files may be changed or deleted while the run goes on; they are not read again.
    """
    files = [settings.data / "train.jsonl", settings.data / "val.jsonl"]
    if missing := [
        f"{path}: there is no such file; make it with `loratune prepare`"
        for path in files
        if not path.is_file()
    ]:
        raise UserError(*missing)
    made_of = {
        "data": {path.stem: hash_file(path) for path in files},
        "prepared": read_preparation(settings.data),
    }
    train, val = map(read_records, files)
    return made_of, train, val


def read_preparation(folder: Path) -> dict:
    """How FinQA's prompts were made, so that `ask` can make them alike; empty where the data has no report of
    that.
    """
    try:
        settings = read_json(folder / "prepare_report.json")["settings"]
        return {name: settings[name] for name in ("fact_tokens", "finqa_target")}
    except (UserError, LookupError, TypeError):
        return {}  # data of the user's own making is no mistake


def refuse_long_rows(settings: TrainConfig, base: LoadedModel) -> None:
    most = base.decoder.spec.max_positions
    if settings.max_tokens > most:
        raise UserError(
            f"--max-tokens {settings.max_tokens}: this model has only {most} positions; choose at most {most}"
        )


def keep_rows_with_target(rows: list[Example]) -> list[Example]:
    return [row for row in rows if row.response]


def refuse_no_rows(settings: TrainConfig, rows: list[Example], val_rows: list[Example]) -> None:
    if not rows:
        raise UserError(
            f"{settings.data / 'train.jsonl'}: no row has a response that fits in --max-tokens "
            f"{settings.max_tokens}"
        )
    if not val_rows:
        raise UserError(
            f"{settings.data / 'val.jsonl'}: no usable rows; prepare with a larger --val-fraction"
        )


def resolve_defaults(
    settings: TrainConfig, base: LoadedModel, rows: list[Example], device: str
) -> tuple[TrainConfig, Measurement | None]:
    """Every default that depends on the machine or the moment decided, so that a resumed run decides the
    same.

    Only what the whole model's speed decides stays open. The second is what was tried: on a CPU, at the
    beginning of a run.
    """
    no_rule = settings.epochs is settings.steps is settings.budget is None
    decided = {
        "model": base.found.name,
        "run": settings.run or create_run_name(),
        "budget": DEFAULT_BUDGET if no_rule else settings.budget,
        "threads": torch.get_num_threads(),
        "device": device,
    }
    settings = settings.model_copy(update=decided)
    if settings.resume:
        return settings, None
    trial = None
    if device == "cuda":
        precision = "bf16" if settings.precision == "auto" else settings.precision
        micro_tokens = settings.micro_tokens or max(
            settings.batch_tokens or DEFAULT_BATCH_TOKENS, settings.max_tokens
        )
    else:
        open_choices = list_candidates(
            settings, is_bf16_fast(base.decoder.spec.hidden_size, base.decoder.spec.intermediate_size)
        )
        trial = run_autotune(
            base.decoder, rows, settings, open_choices, get_cache_folder(), MEMORY_SHARE * available_memory()
        )
        precision, micro_tokens = trial.precision, trial.micro_tokens
    return settings.model_copy(update={"precision": precision, "micro_tokens": micro_tokens}), trial


def create_run_name() -> str:
    """Date and time; once more with a number, where the clock was set back or two runs begin in one
    second.
    """
    name = datetime.now().strftime("%Y-%m-%d-%H%M%S")
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not (RUNS_FOLDER / name).exists())


def choose_step_size(
    settings: TrainConfig, trial: Measurement | None, rows: list[Example], all_val_rows: list[Example]
) -> TrainConfig:
    """What the whole model's speed decides: how large a step is, and how many rows a short --budget can pay
    to validate.
    """
    count = choose_val_rows(settings, trial, all_val_rows)
    if count < settings.val_rows:
        say(
            f"Validation: {count} rows instead of {settings.val_rows}, so that measuring them takes little "
            "of --budget."
        )
    return settings.model_copy(
        update={"batch_tokens": choose_batch_tokens(settings, trial, rows), "val_rows": count}
    )


def build_stop_rule(settings: TrainConfig, rows: list[Example]) -> StopRule:
    if settings.epochs:
        lengths = [input_length(row) for row in rows]
        return StopRule(
            steps=count_steps(
                settings.epochs, lengths, settings.batch_tokens, settings.micro_tokens, settings.seed
            )
        )
    return StopRule(steps=settings.steps, seconds=settings.budget)
