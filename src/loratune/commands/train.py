"""`loratune train`: a LoRA adapter from the prepared data."""

import itertools
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import torch

from loratune.commands.resuming import accepted_changes, made_from, open_run, resumable, resume_command, resumed
from loratune.console import say, warn
from loratune.data.encode import Encoded, encode_rows
from loratune.data.pack import epoch_steps, fed_tokens, fit_together, pack, steps_in
from loratune.data.recall import key_of, recalled
from loratune.data.records import Record, read_records
from loratune.data.sample import draw_evenly
from loratune.data.template import Template, load_template
from loratune.errors import UserError
from loratune.files import filling, locked, refuse_unwritable, write_json, write_text
from loratune.machine import available_memory, bf16_is_fast, peak_memory_mb, return_memory_at_once, use_machine
from loratune.models.adapter import describe, save_adapter
from loratune.models.find import cache_folder, find_base
from loratune.models.load import PRECISIONS, Base, load_base, set_precision
from loratune.models.lora import add_lora, trained_parameters
from loratune.reading import fingerprint, read_json
from loratune.report.card import model_card
from loratune.report.plots import plot_losses
from loratune.settings import BATCH, RUNS, TrainSettings
from loratune.signals import stop_requests
from loratune.training.checkpoint import RunFolder, State, best_weights, put_weights
from loratune.training.forecast import (
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
from loratune.training.loop import Job, fit
from loratune.training.progress import training_bar
from loratune.training.schedule import StopRule

DEFAULT_BUDGET = 3600.0  # seconds
ROOM = 0.8  # share of the free memory that a run may plan with


def run(settings: TrainSettings) -> dict:
    return train_once(settings) if settings.repeat == 1 else repeated(settings)


def repeated(settings: TrainSettings) -> dict:
    """The same training with one seed after the other, each a run and an adapter of its own."""
    name, runs = settings.run or new_name(), []
    for seed in range(settings.seed, settings.seed + settings.repeat):
        own = {"run": f"{name}-seed{seed}", "out": settings.out.with_name(f"{settings.out.name}-seed{seed}")}
        say(f"Training {len(runs) + 1} of {settings.repeat}: --seed {seed}")
        runs.append(train_once(settings.model_copy(update={"seed": seed, "repeat": 1, **own})))
        if settings.dry_run or not runs[-1]["finished"]:
            break
    else:
        say(f"All trained. Mean and spread: loratune evaluate --adapter {' '.join(one['adapter'] for one in runs)}")
    return {"runs": runs}


def train_once(settings: TrainSettings) -> dict:
    ready = made_ready(resumed(settings) if settings.resume else settings)
    announce(ready)
    if ready.settings.dry_run:
        return foretold(ready)
    run, another = ready.settings.run, "wait until it has ended, or choose another"
    with locked(RUNS / run, f"{another} --run"), locked(ready.settings.out, f"{another} --out"), resumable(run):
        return trained(ready)


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
    device = use_machine(settings.threads, settings.device)
    if settings.low_memory:
        return_memory_at_once()
    template = load_template(settings.template)
    made_of, records, val_records = read_data(settings)
    found = find_base(settings.model)
    if settings.resume:
        accepted_changes(settings, made_from(settings, found, made_of, template, device))  # before the long work
    base = load_base(found)
    refuse_long_rows(settings, base)
    key = key_of(made_of["data"]["train"], found.folder, template, settings.max_tokens)
    rows, counts = recalled(cache_folder(), key, lambda: encode_rows(records, template, base.tokenizer, settings.max_tokens))
    all_val_rows, _ = encode_rows(val_records, template, base.tokenizer, settings.max_tokens)
    refuse_no_rows(settings, rows, all_val_rows)
    val_rows = draw_evenly(all_val_rows, settings.val_rows, settings.seed)
    besides_weights = memory_besides_weights(base.decoder)
    settings, trial = settled(settings, base, rows, device)
    set_precision(base.decoder, PRECISIONS[settings.precision]).to(device)
    base.decoder.low_memory = settings.low_memory
    layers = add_lora(base.decoder, settings.rank, settings.alpha, settings.dropout, settings.targets, settings.seed)
    trial = trial and with_all_layers(base.decoder, rows, settings, trial, cache_folder())
    settings = suited(settings, trial, rows, val_rows)
    val_rows = draw_evenly(all_val_rows, settings.val_rows, settings.seed)
    expected = trial and forecast(trial, besides_weights, settings, stop_rule(settings, rows), rows, val_rows)
    return Ready(settings, device, template, base, layers, made_of, records, rows, counts, val_rows, expected)


def foretold(ready: Ready) -> dict:
    told = {name: getattr(ready.settings, name) for name in ("precision", "batch_tokens", "micro_tokens")}
    tokens = sum(map(fed_tokens, ready.rows))
    expected = ready.expected and asdict(ready.expected)
    return {"dry_run": True, "rows": len(ready.rows), "tokens_per_epoch": tokens, **told, "expected": expected}


def trained(ready: Ready) -> dict:
    """The run, from its folder to the saved adapter or, where somebody stopped it, to its last checkpoint."""
    settings, base = ready.settings, ready.base
    folder = open_run(settings, made_from(settings, base.found, ready.made_of, ready.template, ready.device))
    val = val_batches(ready.val_rows, settings, ready.device)
    rule = stop_rule(settings, ready.rows)
    job = Job(base.decoder, ready.rows, val, settings, rule, folder, base.found.hub_name, ready.device)
    with stop_requests() as stop_requested, training_bar() as bar:
        state, finished = fit(job, bar, stop_requested)
    plot_losses(folder.rows(), folder.folder / "loss.png")
    if finished:
        put_weights(base.decoder, best_weights(folder))
        save(ready, model_card(settings, base, ready.template, state, ready.records, len(ready.val_rows), ready.layers))
    else:
        say(f"Stopped at step {state.step}; nothing is lost. Go on with: {resume_command(settings.run)}")
    return summarise(settings, folder, state, finished, ready.counts)


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
        micro_tokens = settings.micro_tokens or settings.batch_tokens or BATCH
    else:
        open_choices = candidates(settings, bf16_is_fast(base.decoder.spec.width, base.decoder.spec.mlp_width))
        trial = try_out(base.decoder, rows, settings, open_choices, cache_folder(), ROOM * available_memory())
        precision, micro_tokens = trial.precision, trial.micro_tokens
    return settings.model_copy(update={"precision": precision, "micro_tokens": micro_tokens}), trial


def suited(settings: TrainSettings, trial: Trial | None, rows: list[Encoded], val_rows: list[Encoded]) -> TrainSettings:
    """What the whole model's speed decides: how large a step is, and how many rows a short --budget can pay to validate."""
    count = val_rows_for(settings, trial, val_rows)
    if count < len(val_rows):
        say(f"Validation: {count} of {len(val_rows)} rows, so that measuring them twice takes a tenth of --budget.")
    return settings.model_copy(update={"batch_tokens": batch_tokens_for(settings, trial, rows), "val_rows": count})


def new_name() -> str:
    """Date and time; once more with a number, where the clock was set back or two runs begin in one second."""
    name = datetime.now().strftime("%Y-%m-%d-%H%M%S")
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not (RUNS / name).exists())


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


def refuse_long_rows(settings: TrainSettings, base: Base) -> None:
    most = base.decoder.spec.max_positions
    if settings.max_tokens > most:
        raise UserError(f"--max-tokens {settings.max_tokens}: this model has only {most} positions; choose at most {most}")


def refuse_no_rows(settings: TrainSettings, rows: list[Encoded], val_rows: list[Encoded]) -> None:
    if not rows:
        raise UserError(f"{settings.data / 'train.jsonl'}: no row has a response that fits in --max-tokens {settings.max_tokens}")
    if not val_rows:
        raise UserError(f"{settings.data / 'val.jsonl'}: no usable rows; prepare with a larger --val-fraction")


def announce(ready: Ready) -> None:
    """What is about to happen, and what the limits on length did to the data."""
    settings, base = ready.settings, ready.base
    adapter = sum(parameter.numel() for parameter in trained_parameters(base.decoder))
    total = sum(parameter.numel() for parameter in base.decoder.parameters())
    lengths = [fed_tokens(row) for row in ready.rows]
    steps = len(epoch_steps(lengths, settings.batch_tokens, settings.micro_tokens, settings.seed, 0))
    say(f"Base: {base.found.name}, {total - adapter:,} numbers, {settings.precision}, {torch.get_num_threads()} threads.")
    say(f"Adapter: rank {settings.rank} on {len(ready.layers)} layers, {adapter:,} trained numbers ({adapter / total:.1%}).")
    say(f"Data: {len(lengths):,} rows, {sum(lengths):,} tokens and {steps:,} steps of {settings.batch_tokens:,} tokens an epoch.")
    for source, count in ready.counts.items():
        if cut := {what: number for what, number in count.items() if what != "rows" and number}:
            told = ", ".join(f"{number} {what.replace('_', ' ')}" for what, number in cut.items())
            tell = warn if sum(cut.values()) > 0.05 * count["rows"] else say
            tell(f"{source}: of {count['rows']:,} rows, {told}, to fit in {settings.max_tokens} tokens")
    if ready.expected:
        say(f"Expected: {ready.expected}.")


def val_batches(rows: list[Encoded], settings: TrainSettings, device: str) -> list:
    groups = fit_together([fed_tokens(row) for row in rows], range(len(rows)), settings.micro_tokens)
    return [pack([rows[number] for number in group]).to(device) for group in groups]


def stop_rule(settings: TrainSettings, rows: list[Encoded]) -> StopRule:
    if settings.epochs:
        lengths = [fed_tokens(row) for row in rows]
        return StopRule(steps=steps_in(settings.epochs, lengths, settings.batch_tokens, settings.micro_tokens, settings.seed))
    return StopRule(steps=settings.steps, seconds=settings.budget)


def save(ready: Ready, card: str) -> None:
    """The adapter folder: PEFT's two files, the tokenizer, what loratune needs to know, and the model card."""
    settings, base, found = ready.settings, ready.base, ready.base.found
    facts = {
        "template": ready.template.to_dict(),
        "base": {"name": found.name, "hub_name": found.hub_name, "fingerprint": found.fingerprint},
        "settings": settings.kept().model_dump(mode="json"),
        **ready.made_of,
        "versions": {package: version(package) for package in ("loratune", "torch", "transformers")},
    }
    with filling(settings.out) as folder:
        save_adapter(base.decoder, folder, found.hub_name)
        base.tokenizer.save(folder)
        describe(folder, facts)
        write_text(folder / "README.md", card)


def prepared_with(folder: Path) -> dict:
    """How FinQA's prompts were made, so that `ask` can make them alike; empty where the data has no report of that."""
    try:
        settings = read_json(folder / "prepare_report.json")["settings"]
        return {name: settings[name] for name in ("fact_tokens", "finqa_target")}
    except (UserError, LookupError, TypeError):
        return {}  # data of the user's own making is no mistake


def summarise(settings: TrainSettings, folder: RunFolder, state: State, finished: bool, counts: dict) -> dict:
    summary = {
        "run": settings.run,
        "finished": finished,
        "adapter": str(settings.out) if finished else None,
        "steps": state.step,
        "tokens": state.tokens,
        "elapsed_seconds": round(state.elapsed, 1),
        "tokens_per_second": round(state.tokens / max(state.stepping, 1e-9), 1),
        "peak_memory_mb": peak_memory_mb(),
        "base_val_nll": state.base_nll,
        "best_val_nll": state.best_nll,
        "best_step": state.best_step,
        "rows": counts,
    }
    write_json(folder.folder / "summary.json", summary)
    if finished and not state.best_step:
        warn("no validation was better than the base's: the adapter changes nothing; try a lower --learning-rate or more steps")
    if finished:
        say(f"Validation loss {state.base_nll:.4f} (base) to {state.best_nll:.4f} (step {state.best_step}).")
        say(f"Adapter: {settings.out}/   Log and curve: {folder.folder}/   Next: loratune compare --adapter {settings.out}")
    return summary
