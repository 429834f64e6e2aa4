"""Train a LoRA adapter: from a set-up run to the saved adapter."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from loratune.config.train import TrainConfig
from loratune.data.chat_template import ChatTemplate
from loratune.data.end_markers import describe_end_markers
from loratune.data.example import Example
from loratune.data.packing import Batch, input_length, pack, pack_best_fit, plan_epoch
from loratune.data.resolve_template import AUTO, CHAT
from loratune.data.template import PromptTemplate
from loratune.data.tokenized import describe_conversations
from loratune.errors import FileError, UserError
from loratune.models.adapter import save_adapter, write_adapter_metadata
from loratune.models.lora import adapter_parameters
from loratune.report.loss_plot import plot_losses
from loratune.report.model_card import render_model_card
from loratune.report.summary import format_count
from loratune.system.atomic import file_lock, fill_folder_atomically, write_json, write_text
from loratune.system.memory import peak_memory_mb
from loratune.system.messages import say, warn
from loratune.system.signals import stop_requests
from loratune.training.checkpoint import TrainingState, restore_adapter_weights
from loratune.training.events import Event, Finished, Warned
from loratune.training.loop import TrainingJob, run_loop
from loratune.training.plan import TrainPlan
from loratune.training.resume import check_changes, collect_run_inputs, find_changes, record_changes
from loratune.training.run_folder import RunFolder, load_best_weights
from loratune.training.setup import Setup, set_up
from loratune.training.setup.recorded_run import (
    dump_recorded_settings,
    format_resume_command,
    get_run_folder,
    read_earlier_inputs,
    resume_config,
)

TRUNCATED_SHARE = 0.05  # of a source's rows, from which on truncation is worth a warning
OnEvent = Callable[[Event], object]


@dataclass(frozen=True)
class TrainResult:
    """The result of a training run, as `runs/NAME/summary.json` holds it."""

    run: str  # its name, which resumes it
    finished: bool  # False for a run that was stopped: it can be resumed
    adapter: Path | None  # the folder; None unless it is finished
    steps: int
    tokens: int
    elapsed_seconds: float
    tokens_per_second: float
    peak_memory_mb: float
    base_val_nll: float | None  # validation loss of the base model, nats a response token
    best_val_nll: float | None  # of the adapter, which is the best of all validations
    best_step: int
    rows: dict[str, dict[str, int]]  # source -> what the limit on length did to its rows -> how many

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"adapter": str(self.adapter) if self.adapter else None}


def set_up_run(config: TrainConfig) -> Setup:
    """Decide and load everything, and say what is about to happen.

    Raises:
        UserError: for everything that can be found wrong before the work begins.
    """
    setup = set_up(resume_config(config) if config.resume else config)
    announce(setup)
    return setup


def run_training(setup: Setup, on_event: OnEvent) -> TrainResult:
    """Run it, from its folder to the saved adapter or, where somebody stopped it, to its last checkpoint.

    Args:
        setup: from `set_up_run`.
        on_event: called with each event of the loop.

    Raises:
        UserError: another process uses the folders, the disk is full, or the loss is not finite.
    """
    run, another = get_run_folder(setup.config).folder, "wait until it has ended, or choose another"
    with (
        file_lock(run, f"{another} `run`"),
        file_lock(setup.config.out, f"{another} `out`"),
        resume_hint(run),
    ):
        return run_locked(setup, on_event)


@contextmanager
def resume_hint(run: Path) -> Iterator[None]:
    """Add how to resume to the error of a run that the file system stopped."""
    try:
        yield
    except FileError as error:
        if not (run / "settings.toml").is_file():
            raise
        remedy = f"nothing up to the last checkpoint is lost; go on with: {format_resume_command(run.name)}"
        raise UserError(*error.details, remedy) from error


def run_locked(setup: Setup, on_event: OnEvent) -> TrainResult:
    model, plan, folder = setup.inputs.model, setup.plan, open_run(setup)
    val = build_val_batches(setup.val_examples, plan)
    job = TrainingJob(model.decoder, setup.inputs.examples, val, plan, folder, model.resolved.hub_name)
    finished = run_events(job, on_event)
    plot_losses(folder.read_log(), folder.folder / "loss.png")
    if finished.is_complete:
        restore_adapter_weights(model.decoder, load_best_weights(folder))
        write_adapter_folder(setup, finished.state)
    else:
        resume = format_resume_command(setup.config.run)
        say(f"Stopped at step {finished.state.step}; nothing is lost. Go on with: {resume}")
    result = build_result(setup, finished)
    write_json(folder.folder / "summary.json", result.to_json())
    announce_result(result, folder)
    return result


def open_run(setup: Setup) -> RunFolder:
    """Create the run's folder; of a resumed run, open it and record the changes that were accepted."""
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


def run_events(job: TrainingJob, on_event: OnEvent) -> Finished:
    """Run the training loop and hand on its events; return the last one. Ctrl-C stops after a step."""
    with stop_requests() as stop_requested:
        for event in run_loop(job, stop_requested):
            on_event(event)
            if isinstance(event, Warned):
                warn(event.message)
            if isinstance(event, Finished):
                return event
    raise AssertionError("the loop ends with Finished")


def announce(setup: Setup) -> None:
    """Say what will be trained on what, and how many rows were cut."""
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
        f"Data: {len(lengths):,} examples, {sum(lengths):,} tokens and {format_count(steps, 'step')} of "
        f"{plan.step.batch_tokens:,} tokens an epoch."
    )
    say(f"Template: {describe_template(inputs.template, config.template)}.")
    for source, counts in inputs.truncation_counts.items():
        announce_truncation(source, counts, plan.max_tokens)
    if tokenizer.bos:
        say(f"Each prompt begins with the BOS token {tokenizer.bos_text}, as the tokenizer is configured.")
    if setup.estimate:
        say(f"Expected: {setup.estimate}.")


def describe_template(template: PromptTemplate, choice: str) -> str:
    """Name the prompt template, and say whose it is where the base model decided."""
    own = "the base model's own chat template" if template.name == CHAT else template.name
    return f"{own} (auto)" if choice == AUTO else own


def announce_truncation(source: str, counts: dict[str, int], max_tokens: int) -> None:
    names = ("inputs_cut", "responses_cut", "dropped")
    if cut := {name: counts[name] for name in names if counts[name]}:
        amounts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in cut.items())
        tell = warn if sum(cut.values()) > TRUNCATED_SHARE * counts["rows"] else say
        tell(f"{source}: of {counts['rows']:,} rows, {amounts}, to fit in {max_tokens} tokens")
    for sentence in [*describe_conversations(counts), describe_end_markers(counts)]:
        if sentence:
            say(f"{source}: {sentence}.")


def build_val_batches(examples: list[Example], plan: TrainPlan) -> list[Batch]:
    lengths = [input_length(example) for example in examples]
    groups = pack_best_fit(lengths, range(len(examples)), plan.micro_tokens)
    return [pack([examples[number] for number in group]).to(plan.device) for group in groups]


def write_adapter_folder(setup: Setup, state: TrainingState) -> None:
    """Write PEFT's two files, the tokenizer, loratune.json and the model card."""
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
        template = inputs.template
        chat_template = template.source if isinstance(template, ChatTemplate) else None
        model.tokenizer.save(folder, chat_template)
        write_adapter_metadata(folder, metadata)
        write_text(folder / "README.md", card)


def build_result(setup: Setup, finished: Finished) -> TrainResult:
    config, state = setup.config, finished.state
    assert config.run is not None, "the run has its name by now"
    return TrainResult(
        run=config.run,
        finished=finished.is_complete,
        adapter=config.out if finished.is_complete else None,
        steps=state.step,
        tokens=state.tokens,
        elapsed_seconds=round(state.elapsed, 1),
        tokens_per_second=round(state.tokens / max(state.stepping, 1e-9), 1),
        peak_memory_mb=peak_memory_mb(),
        base_val_nll=state.base_nll,
        best_val_nll=state.best_nll,
        best_step=state.best_step,
        rows=setup.inputs.truncation_counts,
    )


def announce_result(result: TrainResult, folder: RunFolder) -> None:
    """Say how far the validation loss fell, and what to do next."""
    if not result.finished:
        return
    if not result.best_step:
        warn(
            "no validation was better than the base's: the adapter changes nothing; try a lower "
            "`learning_rate` or more steps"
        )
    loss = f"{result.base_val_nll:.4f} (base) to {result.best_val_nll:.4f} (step {result.best_step})"
    say(f"Validation loss {loss}.")
    say(
        f"Adapter: {result.adapter}/   Log and curve: {folder.folder}/   Next: loratune compare --adapter "
        f"{result.adapter}"
    )
