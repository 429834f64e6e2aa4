"""`loratune train`: a LoRA adapter from the prepared data."""

from dataclasses import asdict
from importlib.metadata import version

import torch

from loratune.commands.ready import Setup, build_stop_rule, create_run_name, set_up
from loratune.commands.resuming import (
    collect_run_inputs,
    format_resume_command,
    open_run,
    resume_config,
    resume_hint,
)
from loratune.config.shared import RUNS_FOLDER
from loratune.config.train import TrainConfig
from loratune.data.example import Example
from loratune.data.packing import input_length, pack, pack_best_fit, plan_epoch
from loratune.evaluation.statistics import mean_and_deviation
from loratune.models.adapter import save_adapter, write_adapter_metadata
from loratune.models.lora import adapter_parameters
from loratune.report.loss_plot import plot_losses
from loratune.report.model_card import render_model_card
from loratune.report.terminal.evaluation import format_with_deviation
from loratune.report.terminal.prepared import format_end_markers
from loratune.report.terminal.training import training_bar
from loratune.system.atomic import file_lock, fill_folder_atomically, write_json, write_text
from loratune.system.console import say, warn
from loratune.system.memory import peak_memory_mb
from loratune.system.signals import stop_requests
from loratune.training.checkpoint import TrainingState, restore_adapter_weights
from loratune.training.loop import TrainingJob, fit
from loratune.training.run_folder import RunFolder, load_best_weights


def run(settings: TrainConfig) -> dict:
    return train_once(settings) if settings.repeat == 1 else train_seeds(settings)


def train_seeds(settings: TrainConfig) -> dict:
    """The same training with one seed after the other, each a run and an adapter of its own."""
    name, runs = settings.run or create_run_name(), []
    for seed in range(settings.seed, settings.seed + settings.repeat):
        own = {"run": f"{name}-seed{seed}", "out": settings.out.with_name(f"{settings.out.name}-seed{seed}")}
        say(f"Training {len(runs) + 1} of {settings.repeat}: --seed {seed}")
        runs.append(train_once(settings.model_copy(update={"seed": seed, "repeat": 1, **own})))
        if settings.dry_run or not runs[-1]["finished"]:
            break
    else:
        losses, adapters = [one["best_val_nll"] for one in runs], " ".join(one["adapter"] for one in runs)
        loss = format_with_deviation(mean_and_deviation(losses), factor=1, decimals=4)
        say(f"All trained: validation loss {loss}, mean and standard deviation.")
        say(f"The same on held-out rows: loratune evaluate --adapter {adapters}")
    return {"runs": runs}


def train_once(settings: TrainConfig) -> dict:
    ready = set_up(resume_config(settings) if settings.resume else settings)
    announce(ready)
    if ready.settings.dry_run:
        return build_dry_run_result(ready)
    run, another = ready.settings.run, "wait until it has ended, or choose another"
    with (
        file_lock(RUNS_FOLDER / run, f"{another} --run"),
        file_lock(ready.settings.out, f"{another} --out"),
        resume_hint(run),
    ):
        return run_training(ready)


def build_dry_run_result(ready: Setup) -> dict:
    told = {
        name: getattr(ready.settings, name)
        for name in ("precision", "batch_tokens", "micro_tokens", "val_rows")
    }
    tokens = sum(map(input_length, ready.rows))
    expected = ready.expected and asdict(ready.expected)
    return {
        "dry_run": True,
        "rows": len(ready.rows),
        "tokens_per_epoch": tokens,
        **told,
        "expected": expected,
    }


def run_training(ready: Setup) -> dict:
    """The run, from its folder to the saved adapter or, where somebody stopped it, to its last checkpoint."""
    settings, base = ready.settings, ready.base
    facts = collect_run_inputs(
        settings, base.found, ready.data_info, ready.template, ready.device, bos=base.tokenizer.bos
    )
    folder = open_run(settings, facts)
    val = build_val_batches(ready.val_rows, settings, ready.device)
    rule = build_stop_rule(settings, ready.rows)
    job = TrainingJob(
        base.decoder, ready.rows, val, settings, rule, folder, base.found.hub_name, ready.device
    )
    with stop_requests() as stop_requested, training_bar() as bar:
        state, finished = fit(job, bar, stop_requested)
    plot_losses(folder.read_log(), folder.folder / "loss.png")
    if finished:
        restore_adapter_weights(base.decoder, load_best_weights(folder))
        write_adapter_folder(
            ready,
            render_model_card(
                settings, base, ready.template, state, ready.records, len(ready.val_rows), ready.layers
            ),
        )
    else:
        say(
            f"Stopped at step {state.step}; nothing is lost. Go on with: "
            f"{format_resume_command(settings.run)}"
        )
    return write_summary(settings, folder, state, finished, ready.counts)


def announce(ready: Setup) -> None:
    """What is about to happen, and what the limits on length did to the data."""
    settings, base = ready.settings, ready.base
    adapter = sum(parameter.numel() for parameter in adapter_parameters(base.decoder).values())
    total = sum(parameter.numel() for parameter in base.decoder.parameters())
    lengths = [input_length(row) for row in ready.rows]
    steps = len(plan_epoch(lengths, settings.batch_tokens, settings.micro_tokens, settings.seed, 0))
    say(
        f"Base: {base.found.title}, {total - adapter:,} numbers, {settings.precision}, "
        f"{torch.get_num_threads()} threads."
    )
    say(
        f"Adapter: rank {settings.rank} on {len(ready.layers)} layers, {adapter:,} trained numbers "
        f"({adapter / total:.1%})."
    )
    say(
        f"Data: {len(lengths):,} rows, {sum(lengths):,} tokens and {steps:,} steps of "
        f"{settings.batch_tokens:,} tokens an epoch."
    )
    for source, count in ready.counts.items():
        if cut := {what: count[what] for what in ("inputs_cut", "responses_cut", "dropped") if count[what]}:
            told = ", ".join(f"{number} {what.replace('_', ' ')}" for what, number in cut.items())
            tell = warn if sum(cut.values()) > 0.05 * count["rows"] else say
            tell(f"{source}: of {count['rows']:,} rows, {told}, to fit in {settings.max_tokens} tokens")
        if markers := format_end_markers(count):
            say(f"{source}: {markers}.")
    if base.tokenizer.bos:
        say(
            f"Each prompt begins with the BOS token {base.tokenizer.bos_text}, as the tokenizer is "
            "configured."
        )
    if ready.expected:
        say(f"Expected: {ready.expected}.")


def build_val_batches(rows: list[Example], settings: TrainConfig, device: str) -> list:
    groups = pack_best_fit([input_length(row) for row in rows], range(len(rows)), settings.micro_tokens)
    return [pack([rows[number] for number in group]).to(device) for group in groups]


def write_adapter_folder(ready: Setup, card: str) -> None:
    """The adapter folder: PEFT's two files, the tokenizer, what loratune needs to know, and the model
    card.
    """
    settings, base, found = ready.settings, ready.base, ready.base.found
    facts = {
        "template": ready.template.to_dict(),
        "bos": bool(
            base.tokenizer.bos
        ),  # whether each prompt began with the tokenizer's BOS; none did before this was written
        "base": {
            "name": found.name,
            "hub_name": found.hub_name,
            "fingerprint": found.fingerprint,
            "config": found.config,
            "tokenizer": found.tokenizer,
        },
        "settings": settings.without_start_options().model_dump(mode="json"),
        **ready.data_info,
        "versions": {package: version(package) for package in ("loratune", "torch", "transformers")},
    }
    with fill_folder_atomically(settings.out) as folder:
        save_adapter(base.decoder, folder, found.hub_name)
        base.tokenizer.save(folder)
        write_adapter_metadata(folder, facts)
        write_text(folder / "README.md", card)


def write_summary(
    settings: TrainConfig, folder: RunFolder, state: TrainingState, finished: bool, counts: dict
) -> dict:
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
        warn(
            "no validation was better than the base's: the adapter changes nothing; try a lower "
            "--learning-rate or more steps"
        )
    if finished:
        say(f"Validation loss {state.base_nll:.4f} (base) to {state.best_nll:.4f} (step {state.best_step}).")
        say(
            f"Adapter: {settings.out}/   Log and curve: {folder.folder}/   Next: loratune compare --adapter "
            f"{settings.out}"
        )
    return summary
