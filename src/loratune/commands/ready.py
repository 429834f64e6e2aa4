"""What a training run decides and loads before its first step."""

import itertools
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import torch

from loratune.commands.device import choose_device
from loratune.commands.loading import tell_own_template
from loratune.commands.resuming import accepted_changes, began_with_bos, made_from, resume_command
from loratune.config.shared import RUNS
from loratune.config.train import BATCH, TrainSettings
from loratune.data.example import Encoded, Record
from loratune.data.jsonl import read_records
from loratune.data.packing import fed_tokens, steps_in
from loratune.data.sample import draw_evenly
from loratune.data.template import Template, load_template
from loratune.data.token_cache import key_of, recalled
from loratune.data.tokenize import encode_rows
from loratune.errors import UserError
from loratune.models.load import PRECISIONS, Base, load_base, set_precision
from loratune.models.lora import add_lora
from loratune.models.resolve import cache_folder, find_base
from loratune.models.tokenizer import Tokenizer
from loratune.system.atomic import refuse_unwritable
from loratune.system.console import say
from loratune.system.hardware import bf16_is_fast
from loratune.system.memory import available_memory, return_memory_at_once
from loratune.system.read import fingerprint, read_json
from loratune.training.autotune import (
    Forecast,
    Trial,
    batch_tokens_for,
    candidates,
    forecast,
    memory_besides_weights,
    try_out,
    val_rows_for,
    with_all_layers,
)
from loratune.training.schedule import StopRule

DEFAULT_BUDGET = 3600.0  # seconds
ROOM = 0.8  # share of the free memory that a run may plan with


@dataclass(frozen=True)
class Ready:
    """All that is decided and loaded before the first step. The base has the new adapter on it."""

    settings: TrainSettings  # nothing is left to the machine or the moment
    device: str
    template: Template
    base: Base
    layers: list[str]  # that are adapted
    made_of: dict  # what the data is, and how it was prepared
    records: list[Record]
    rows: list[Encoded]
    counts: dict  # what the limit on length did to the rows, for each source
    val_rows: list[Encoded]
    expected: Forecast | None  # none on a GPU and for a resumed run


def made_ready(settings: TrainSettings) -> Ready:
    """Raises UserError for everything that can be found wrong before the work begins."""
    refuse_unwritable(settings.out, folder=True)
    resume = resume_command(settings.run) if settings.resume else ""
    device = choose_device(settings.threads, settings.device, resume)
    if settings.low_memory:
        return_memory_at_once()
    template = load_template(settings.template)
    made_of, records, val_records = read_data(settings)
    found = find_base(settings.model)
    if settings.resume:
        begun = begins_with(settings, Tokenizer.load(found.folder))
        accepted_changes(settings, made_from(settings, found, made_of, template, device, bos=begun.bos))  # before the long work
    base = load_base(found)
    tell_own_template(base, template)
    base = replace(base, tokenizer=begins_with(settings, base.tokenizer))
    refuse_long_rows(settings, base)
    key = key_of(made_of["data"]["train"], found.content, template, settings.max_tokens, bos=base.tokenizer.bos)
    rows, counts = recalled(cache_folder(), key, lambda: encode_rows(records, template, base.tokenizer, settings.max_tokens))
    all_val_rows, _ = encode_rows(val_records, template, base.tokenizer, settings.max_tokens)
    rows, all_val_rows = with_targets(rows), with_targets(all_val_rows)
    refuse_no_rows(settings, rows, all_val_rows)
    besides_weights = memory_besides_weights(base.decoder)
    settings, trial = settled(settings, base, rows, device)
    set_precision(base.decoder, PRECISIONS[settings.precision]).to(device)
    base.decoder.low_memory = settings.low_memory
    layers = add_lora(base.decoder, settings.rank, settings.alpha, settings.dropout, settings.targets, settings.seed)
    trial = trial and with_all_layers(base.decoder, rows, settings, trial, cache_folder())
    settings = suited(settings, trial, rows, all_val_rows)
    val_rows = draw_evenly(all_val_rows, settings.val_rows, seed=0)  # trainings with other seeds are compared on the same
    expected = trial and forecast(trial, besides_weights, settings, stop_rule(settings, rows), rows, val_rows)
    return Ready(settings, device, template, base, layers, made_of, records, rows, counts, val_rows, expected)


def begins_with(settings: TrainSettings, tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, without BOS for a run that was begun without."""
    return tokenizer.without_bos() if settings.resume and not began_with_bos(settings) else tokenizer


def read_data(settings: TrainSettings) -> tuple[dict, list[Record], list[Record]]:
    """What the files are and how they were prepared, the training records and the validation records.

    The files may be changed or deleted while the run goes on; they are not read again.
    """
    files = [settings.data / "train.jsonl", settings.data / "val.jsonl"]
    if missing := [f"{path}: there is no such file; make it with `loratune prepare`" for path in files if not path.is_file()]:
        raise UserError(*missing)
    made_of = {"data": {path.stem: fingerprint(path) for path in files}, "prepared": prepared_with(settings.data)}
    train, val = map(read_records, files)
    return made_of, train, val


def prepared_with(folder: Path) -> dict:
    """How FinQA's prompts were made, so that `ask` can make them alike; empty where the data has no report of that."""
    try:
        settings = read_json(folder / "prepare_report.json")["settings"]
        return {name: settings[name] for name in ("fact_tokens", "finqa_target")}
    except (UserError, LookupError, TypeError):
        return {}  # data of the user's own making is no mistake


def refuse_long_rows(settings: TrainSettings, base: Base) -> None:
    most = base.decoder.spec.max_positions
    if settings.max_tokens > most:
        raise UserError(f"--max-tokens {settings.max_tokens}: this model has only {most} positions; choose at most {most}")


def with_targets(rows: list[Encoded]) -> list[Encoded]:
    return [row for row in rows if row.response]


def refuse_no_rows(settings: TrainSettings, rows: list[Encoded], val_rows: list[Encoded]) -> None:
    if not rows:
        raise UserError(f"{settings.data / 'train.jsonl'}: no row has a response that fits in --max-tokens {settings.max_tokens}")
    if not val_rows:
        raise UserError(f"{settings.data / 'val.jsonl'}: no usable rows; prepare with a larger --val-fraction")


def settled(settings: TrainSettings, base: Base, rows: list[Encoded], device: str) -> tuple[TrainSettings, Trial | None]:
    """Every default that depends on the machine or the moment decided, so that a resumed run decides the same.

    Only what the whole model's speed decides stays open. The second is what was tried: on a CPU, at the beginning of a run.
    """
    no_rule = settings.epochs is settings.steps is settings.budget is None
    decided = {
        "model": base.found.name,
        "run": settings.run or new_name(),
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
        micro_tokens = settings.micro_tokens or max(settings.batch_tokens or BATCH, settings.max_tokens)
    else:
        open_choices = candidates(settings, bf16_is_fast(base.decoder.spec.width, base.decoder.spec.mlp_width))
        trial = try_out(base.decoder, rows, settings, open_choices, cache_folder(), ROOM * available_memory())
        precision, micro_tokens = trial.precision, trial.micro_tokens
    return settings.model_copy(update={"precision": precision, "micro_tokens": micro_tokens}), trial


def new_name() -> str:
    """Date and time; once more with a number, where the clock was set back or two runs begin in one second."""
    name = datetime.now().strftime("%Y-%m-%d-%H%M%S")
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not (RUNS / name).exists())


def suited(settings: TrainSettings, trial: Trial | None, rows: list[Encoded], all_val_rows: list[Encoded]) -> TrainSettings:
    """What the whole model's speed decides: how large a step is, and how many rows a short --budget can pay to validate."""
    count = val_rows_for(settings, trial, all_val_rows)
    if count < settings.val_rows:
        say(f"Validation: {count} rows instead of {settings.val_rows}, so that measuring them takes little of --budget.")
    return settings.model_copy(update={"batch_tokens": batch_tokens_for(settings, trial, rows), "val_rows": count})


def stop_rule(settings: TrainSettings, rows: list[Encoded]) -> StopRule:
    if settings.epochs:
        lengths = [fed_tokens(row) for row in rows]
        return StopRule(steps=steps_in(settings.epochs, lengths, settings.batch_tokens, settings.micro_tokens, settings.seed))
    return StopRule(steps=settings.steps, seconds=settings.budget)
