"""`loratune train`: a LoRA adapter from the prepared data."""

from dataclasses import asdict
from importlib.metadata import version

import torch

from loratune.commands.ready import Ready, made_ready, new_name, stop_rule
from loratune.commands.resuming import made_from, open_run, resumable, resume_command, resumed
from loratune.config.shared import RUNS
from loratune.config.train import TrainSettings
from loratune.data.example import Encoded
from loratune.data.packing import epoch_steps, fed_tokens, fit_together, pack
from loratune.evaluation.statistics import mean_and_deviation
from loratune.models.adapter import describe, save_adapter
from loratune.models.lora import trained_parameters
from loratune.report.loss_plot import plot_losses
from loratune.report.model_card import model_card
from loratune.report.terminal.evaluation import with_deviation
from loratune.report.terminal.prepared import end_markers_in_words
from loratune.report.terminal.training import training_bar
from loratune.system.atomic import filling, locked, write_json, write_text
from loratune.system.console import say, warn
from loratune.system.memory import peak_memory_mb
from loratune.system.signals import stop_requests
from loratune.training.checkpoint import RunFolder, State, best_weights, put_weights
from loratune.training.loop import Job, fit


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
        losses, adapters = [one["best_val_nll"] for one in runs], " ".join(one["adapter"] for one in runs)
        loss = with_deviation(mean_and_deviation(losses), factor=1, decimals=4)
        say(f"All trained: validation loss {loss}, mean and standard deviation.")
        say(f"The same on held-out rows: loratune evaluate --adapter {adapters}")
    return {"runs": runs}


def train_once(settings: TrainSettings) -> dict:
    ready = made_ready(resumed(settings) if settings.resume else settings)
    announce(ready)
    if ready.settings.dry_run:
        return foretold(ready)
    run, another = ready.settings.run, "wait until it has ended, or choose another"
    with locked(RUNS / run, f"{another} --run"), locked(ready.settings.out, f"{another} --out"), resumable(run):
        return trained(ready)


def foretold(ready: Ready) -> dict:
    told = {name: getattr(ready.settings, name) for name in ("precision", "batch_tokens", "micro_tokens", "val_rows")}
    tokens = sum(map(fed_tokens, ready.rows))
    expected = ready.expected and asdict(ready.expected)
    return {"dry_run": True, "rows": len(ready.rows), "tokens_per_epoch": tokens, **told, "expected": expected}


def trained(ready: Ready) -> dict:
    """The run, from its folder to the saved adapter or, where somebody stopped it, to its last checkpoint."""
    settings, base = ready.settings, ready.base
    facts = made_from(settings, base.found, ready.made_of, ready.template, ready.device, bos=base.tokenizer.bos)
    folder = open_run(settings, facts)
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


def announce(ready: Ready) -> None:
    """What is about to happen, and what the limits on length did to the data."""
    settings, base = ready.settings, ready.base
    adapter = sum(parameter.numel() for parameter in trained_parameters(base.decoder))
    total = sum(parameter.numel() for parameter in base.decoder.parameters())
    lengths = [fed_tokens(row) for row in ready.rows]
    steps = len(epoch_steps(lengths, settings.batch_tokens, settings.micro_tokens, settings.seed, 0))
    say(f"Base: {base.found.title}, {total - adapter:,} numbers, {settings.precision}, {torch.get_num_threads()} threads.")
    say(f"Adapter: rank {settings.rank} on {len(ready.layers)} layers, {adapter:,} trained numbers ({adapter / total:.1%}).")
    say(f"Data: {len(lengths):,} rows, {sum(lengths):,} tokens and {steps:,} steps of {settings.batch_tokens:,} tokens an epoch.")
    for source, count in ready.counts.items():
        if cut := {what: count[what] for what in ("inputs_cut", "responses_cut", "dropped") if count[what]}:
            told = ", ".join(f"{number} {what.replace('_', ' ')}" for what, number in cut.items())
            tell = warn if sum(cut.values()) > 0.05 * count["rows"] else say
            tell(f"{source}: of {count['rows']:,} rows, {told}, to fit in {settings.max_tokens} tokens")
        if markers := end_markers_in_words(count):
            say(f"{source}: {markers}.")
    if base.tokenizer.bos:
        say(f"Each prompt begins with the BOS token {base.tokenizer.bos_text}, as the tokenizer is configured.")
    if ready.expected:
        say(f"Expected: {ready.expected}.")


def val_batches(rows: list[Encoded], settings: TrainSettings, device: str) -> list:
    groups = fit_together([fed_tokens(row) for row in rows], range(len(rows)), settings.micro_tokens)
    return [pack([rows[number] for number in group]).to(device) for group in groups]


def save(ready: Ready, card: str) -> None:
    """The adapter folder: PEFT's two files, the tokenizer, what loratune needs to know, and the model card."""
    settings, base, found = ready.settings, ready.base, ready.base.found
    facts = {
        "template": ready.template.to_dict(),
        "bos": bool(base.tokenizer.bos),  # whether each prompt began with the tokenizer's BOS; none did before this was written
        "base": {
            "name": found.name,
            "hub_name": found.hub_name,
            "fingerprint": found.fingerprint,
            "config": found.config,
            "tokenizer": found.tokenizer,
        },
        "settings": settings.kept().model_dump(mode="json"),
        **ready.made_of,
        "versions": {package: version(package) for package in ("loratune", "torch", "transformers")},
    }
    with filling(settings.out) as folder:
        save_adapter(base.decoder, folder, found.hub_name)
        base.tokenizer.save(folder)
        describe(folder, facts)
        write_text(folder / "README.md", card)


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
