"""`loratune train`: a LoRA adapter from the prepared data."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from loratune.config.train import TrainConfig
from loratune.data.example import Example
from loratune.data.packing import Batch, input_length, pack, pack_best_fit, plan_epoch
from loratune.errors import FileError, UserError
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
from loratune.training.events import Finished, Warned
from loratune.training.loop import TrainingJob, run_loop
from loratune.training.plan import TrainPlan
from loratune.training.resume import check_changes, collect_run_inputs, find_changes, record_changes
from loratune.training.run_folder import RunFolder, load_best_weights
from loratune.training.setup import Setup, set_up
from loratune.training.setup.defaults import create_run_name
from loratune.training.setup.recorded_run import (
    dump_recorded_settings,
    format_resume_command,
    get_run_folder,
    read_earlier_inputs,
    resume_config,
)

TRUNCATED_SHARE = 0.05  # of a source's rows, from which on truncation is worth a warning


def run(settings: TrainConfig) -> dict:
    return train_once(settings) if settings.repeat == 1 else train_seeds(settings)


def train_seeds(settings: TrainConfig) -> dict:
    """Train with one seed after another, each a run and an adapter of its own."""
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
    setup = set_up(resume_config(settings) if settings.resume else settings)
    announce(setup)
    if setup.config.dry_run:
        return build_dry_run_result(setup)
    run, another = get_run_folder(setup.config).folder, "wait until it has ended, or choose another"
    with (
        file_lock(run, f"{another} --run"),
        file_lock(setup.config.out, f"{another} --out"),
        resume_hint(run),
    ):
        return run_training(setup)


@contextmanager
def resume_hint(run: Path) -> Iterator[None]:
    """Let a run that the file system stopped say how it goes on."""
    try:
        yield
    except FileError as error:
        if not (run / "settings.toml").is_file():
            raise
        remedy = f"nothing up to the last checkpoint is lost; go on with: {format_resume_command(run.name)}"
        raise UserError(*error.details, remedy) from error


def build_dry_run_result(setup: Setup) -> dict:
    plan = setup.plan
    return {
        "dry_run": True,
        "rows": len(setup.inputs.examples),
        "tokens_per_epoch": sum(map(input_length, setup.inputs.examples)),
        "precision": plan.precision,
        "batch_tokens": plan.step.batch_tokens,
        "micro_tokens": plan.micro_tokens,
        "val_rows": plan.val_rows,
        "expected": asdict(setup.estimate) if setup.estimate else None,
    }


def run_training(setup: Setup) -> dict:
    """Run it, from its folder to the saved adapter or, where somebody stopped it, to its last checkpoint."""
    model, plan, folder = setup.inputs.model, setup.plan, open_run(setup)
    val = build_val_batches(setup.val_examples, plan)
    job = TrainingJob(model.decoder, setup.inputs.examples, val, plan, folder, model.resolved.hub_name)
    finished = run_and_show(job)
    plot_losses(folder.read_log(), folder.folder / "loss.png")
    if finished.is_complete:
        restore_adapter_weights(model.decoder, load_best_weights(folder))
        write_adapter_folder(setup, finished.state)
    else:
        resume = format_resume_command(setup.config.run)
        say(f"Stopped at step {finished.state.step}; nothing is lost. Go on with: {resume}")
    return write_summary(
        setup.config, folder, finished.state, finished.is_complete, setup.inputs.truncation_counts
    )


def open_run(setup: Setup) -> RunFolder:
    """Make the run's folder, or open the old one's, in which accepted changes are recorded."""
    config, inputs, folder = setup.config, setup.inputs, get_run_folder(setup.config)
    run_inputs = collect_run_inputs(
        inputs.model.resolved,
        inputs.template,
        data=inputs.data_hashes,
        settings=dump_recorded_settings(config),
        device=inputs.device,
        bos=inputs.model.tokenizer.bos,
    )
    settings_toml = config.without_start_options().to_toml()
    if not config.resume:
        folder.create(settings_toml, run_inputs)
    elif changes := find_changes(read_earlier_inputs(config), run_inputs):
        check_changes(changes, accepted=config.accept_changes, fixed=TrainConfig.FIXED)
        record_changes(folder, changes, settings_toml=settings_toml, run_inputs=run_inputs)
    return folder


def run_and_show(job: TrainingJob) -> Finished:
    """Run the training loop and show its events; return the last one."""
    with stop_requests() as stop_requested, training_bar() as bar:
        for event in run_loop(job, stop_requested):
            bar.show(event)
            if isinstance(event, Warned):
                warn(event.message)
            if isinstance(event, Finished):
                return event
    raise AssertionError("the loop ends with Finished")


def announce(setup: Setup) -> None:
    """Say what is about to happen, and what the limits on length did to the data."""
    config, plan, inputs = setup.config, setup.plan, setup.inputs
    decoder, tokenizer = inputs.model.decoder, inputs.model.tokenizer
    trainable = sum(parameter.numel() for parameter in adapter_parameters(decoder).values())
    total = sum(parameter.numel() for parameter in decoder.parameters())
    lengths = [input_length(example) for example in inputs.examples]
    steps = len(plan_epoch(lengths, plan.step.batch_tokens, plan.micro_tokens, seed=plan.step.seed, epoch=0))
    say(
        f"Base: {inputs.model.resolved.title}, {total - trainable:,} parameters, {plan.precision}, "
        f"{torch.get_num_threads()} threads."
    )
    say(
        f"Adapter: rank {config.rank} on {len(setup.adapted_layers)} layers, {trainable:,} trainable "
        f"parameters ({trainable / total:.1%})."
    )
    say(
        f"Data: {len(lengths):,} rows, {sum(lengths):,} tokens and {steps:,} steps of "
        f"{plan.step.batch_tokens:,} tokens an epoch."
    )
    for source, counts in inputs.truncation_counts.items():
        announce_truncation(source, counts, plan.max_tokens)
    if tokenizer.bos:
        say(f"Each prompt begins with the BOS token {tokenizer.bos_text}, as the tokenizer is configured.")
    if setup.estimate:
        say(f"Expected: {setup.estimate}.")


def announce_truncation(source: str, counts: dict[str, int], max_tokens: int) -> None:
    names = ("inputs_cut", "responses_cut", "dropped")
    if cut := {name: counts[name] for name in names if counts[name]}:
        amounts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in cut.items())
        tell = warn if sum(cut.values()) > TRUNCATED_SHARE * counts["rows"] else say
        tell(f"{source}: of {counts['rows']:,} rows, {amounts}, to fit in {max_tokens} tokens")
    if markers := format_end_markers(counts):
        say(f"{source}: {markers}.")


def build_val_batches(examples: list[Example], plan: TrainPlan) -> list[Batch]:
    lengths = [input_length(example) for example in examples]
    groups = pack_best_fit(lengths, range(len(examples)), plan.micro_tokens)
    return [pack([examples[number] for number in group]).to(plan.device) for group in groups]


def write_adapter_folder(setup: Setup, state: TrainingState) -> None:
    """Write PEFT's two files, the tokenizer, what loratune needs to know, and the model card."""
    inputs, model, base = setup.inputs, setup.inputs.model, setup.inputs.model.resolved
    card = render_model_card(
        setup.plan.step.adapter,
        model,
        inputs.template,
        state=state,
        records=inputs.records,
        val_rows=len(setup.val_examples),
        adapted_layers=len(setup.adapted_layers),
    )
    metadata = {
        "template": inputs.template.to_dict(),
        # Whether each prompt began with the tokenizer's BOS; none did before this was recorded.
        "bos": bool(model.tokenizer.bos),
        "base": {
            "name": base.name,
            "hub_name": base.hub_name,
            "fingerprint": base.fingerprint,
            "config": base.config,
            "tokenizer": base.tokenizer,
        },
        "settings": setup.config.without_start_options().model_dump(mode="json"),
        "data": inputs.data_hashes,
        "prepared": inputs.preparation,
        "versions": {package: version(package) for package in ("loratune", "torch", "transformers")},
    }
    with fill_folder_atomically(setup.config.out) as folder:
        save_adapter(model.decoder, folder, base.hub_name)
        model.tokenizer.save(folder)
        write_adapter_metadata(folder, metadata)
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
