"""The run: steps, validations and checkpoints until the stop rule says that it is over."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from loratune.config.train import TrainConfig
from loratune.data.example import Example
from loratune.data.packing import input_length, iterate_steps
from loratune.errors import UserError
from loratune.report.terminal.training import TrainingBar
from loratune.system.memory import peak_memory_mb, release_freed_memory
from loratune.system.messages import warn
from loratune.training.checkpoint import TrainingState
from loratune.training.objective import Objective, ResponseNll
from loratune.training.run_folder import RunFolder
from loratune.training.schedule import StopRule, learning_rate_factor
from loratune.training.step import NonFiniteError, OutOfMemoryError, StepResult, adamw, train_step
from loratune.training.validate import compute_validation_loss

SAVE_INTERVAL_SECONDS = (
    600.0  # seconds between checkpoints: the most that a crash or a flat battery takes away
)


@dataclass(frozen=True)
class TrainingJob:
    """All that a run needs."""

    decoder: torch.nn.Module
    examples: Sequence[Example]
    val_batches: Sequence
    settings: TrainConfig
    stop_rule: StopRule
    run_folder: RunFolder
    base: str  # what PEFT calls the base model
    device: str
    objective: Objective = field(default_factory=ResponseNll)


def fit(job: TrainingJob, bar: TrainingBar, stop_requested: Callable[[], bool]) -> tuple[TrainingState, bool]:
    """Train until the end, an early stop or a request to stop. Returns where the run is and whether it is
    finished.

    Time is that of a clock which nobody sets and which rests while the machine sleeps (on Linux and macOS): a
    laptop whose lid is closed in the middle of a --budget trains the rest of it afterwards.
    """
    settings = job.settings
    optimizer = adamw(job.decoder.train(), settings.weight_decay)
    state = job.run_folder.restore(job.decoder, optimizer)
    if state.base_nll is None:
        validate(job, optimizer, state, bar)
    validations = job.stop_rule.count_affordable_validations(settings.validations, state.validation_seconds)
    rule = reserve_validation_time(job.stop_rule, state)
    started = time.perf_counter() - state.elapsed
    finished = False
    for groups in iterate_remaining_steps(job, state):
        state.elapsed = time.perf_counter() - started
        finished = rule.is_over(state.step, state.elapsed, state.seconds_per_step) or is_out_of_patience(
            state, settings.patience
        )
        if finished or stop_requested():
            break
        if state.elapsed - job.run_folder.saved_at >= SAVE_INTERVAL_SECONDS:
            job.run_folder.save(job.decoder, optimizer, state, job.base, best=False)
        progress = rule.compute_progress(state.step, state.elapsed, state.seconds_per_step)
        try:
            result, rate = take_step(job, optimizer, groups, state, progress)
        except OutOfMemoryError:
            state.micro_tokens = halve_micro_tokens(job, groups, state.step + 1)
            continue
        state.elapsed = time.perf_counter() - started
        job.run_folder.append_log(build_log_row(state, result, rate))
        bar.show(
            progress,
            state,
            result,
            rule.compute_seconds_left(state.step, state.elapsed, state.seconds_per_step),
        )
        if int(progress * validations) >= state.validations:
            validate(job, optimizer, state, bar)
    if finished and state.validated_step < state.step:
        validate(job, optimizer, state, bar)
    if finished:
        bar.complete()
    else:
        job.run_folder.save(job.decoder, optimizer, state, job.base, best=False)
    return state, finished


def iterate_remaining_steps(job: TrainingJob, state: TrainingState) -> Iterator[list[list[int]]]:
    """The steps that are still to be taken, in micro-batches of the size that the state says at that
    moment.
    """
    settings, lengths = job.settings, [input_length(row) for row in job.examples]
    while True:
        size = state.micro_tokens or settings.micro_tokens
        for groups in iterate_steps(lengths, settings.batch_tokens, size, settings.seed, state.step):
            yield groups
            if size != (state.micro_tokens or settings.micro_tokens):
                break


def halve_micro_tokens(job: TrainingJob, groups: list[list[int]], step: int) -> int:
    """Half of the most tokens that could be computed in two parts. Raises UserError when each row was already
    alone.
    """
    lengths = [[input_length(job.examples[number]) for number in group] for group in groups]
    tokens = max((sum(group) for group in lengths if len(group) > 1), default=None)
    if tokens is None:
        raise UserError(
            f"step {step}: not enough memory for a row of {max(map(max, lengths)):,} tokens, computed alone. "
            "The run stopped; "
            "its checkpoints are good. Close other programs and go on with it, or start a run with "
            "--low-memory or a lower "
            f"--max-tokens (now {job.settings.max_tokens:,})"
        )
    release_freed_memory()
    warn(
        f"step {step}: not enough memory for {tokens:,} tokens at once; from here on {tokens // 2:,}, with "
        "the same result"
    )
    return tokens // 2


def take_step(
    job: TrainingJob, optimizer, groups: list[list[int]], state: TrainingState, progress: float
) -> tuple[StepResult, float]:
    """One optimiser step at the learning rate of this progress; counts it in the state."""
    began = time.perf_counter()
    settings = job.settings
    rate = settings.learning_rate * learning_rate_factor(progress, settings.warmup, settings.schedule)
    torch.manual_seed(settings.seed * 1_000_003 + state.step)  # dropout, too, is a function of (seed, step)
    batches = [
        job.objective.collate([job.examples[number] for number in group]).to(job.device) for group in groups
    ]
    try:
        result = train_step(
            job.decoder,
            optimizer,
            batches,
            objective=job.objective,
            learning_rate=rate,
            clip=settings.clip,
        )
    except NonFiniteError as error:
        raise UserError(
            f"step {state.step + 1}: {error}. The run stopped; its checkpoints are good. "
            f"{diagnose_non_finite(job, groups, rate)}"
        ) from error
    state.step, state.tokens = state.step + 1, state.tokens + result.tokens
    state.stepping += time.perf_counter() - began
    return result, rate


def diagnose_non_finite(job: TrainingJob, groups: list[list[int]], rate: float) -> str:
    """What to do about a step that is no number: the records that alone make it so, or else the learning
    rate.
    """
    rows = [job.examples[number] for group in groups for number in group]
    if broken := [
        row.id
        for row in rows
        if not math.isfinite(
            compute_validation_loss(job.decoder, [job.objective.collate([row]).to(job.device)], job.objective)
        )
    ]:
        return (
            f"By itself, too, it is no number for: {', '.join(broken)}. Look at it, leave it out and start "
            "a new run"
        )
    return (
        f"Start a run with a lower --learning-rate (now {rate:.2g}) or --precision fp32, or look at this "
        "step's records: "
        f"{', '.join(row.id for row in rows)}"
    )


def validate(job: TrainingJob, optimizer, state: TrainingState, bar: TrainingBar) -> None:
    """Measure, log, and save a checkpoint; the first measurement is the base model's."""
    began = time.perf_counter()
    nll = compute_validation_loss(job.decoder, job.val_batches, job.objective)
    if not math.isfinite(nll):
        raise UserError(
            f"step {state.step}: the validation loss is {nll}. The run stopped; its checkpoints are good. "
            "Try a lower --learning-rate or --precision fp32"
        )
    release_freed_memory()  # not at each step, where it would cost a tenth of the speed
    if state.base_nll is None:
        state.base_nll, state.validation_seconds = nll, time.perf_counter() - began
        if nll > math.log(job.decoder.spec.vocab_size):
            warn("the base model predicts worse than chance: is the tokenizer in its folder another model's?")
    state.validations, state.validated_step = state.validations + 1, state.step
    best = state.best_nll is None or nll < state.best_nll
    if best:
        state.best_nll, state.best_step, state.best_validation = nll, state.step, state.validations
    job.run_folder.append_log(
        {"step": state.step, "val_nll": nll, "elapsed_seconds": round(state.elapsed, 2)}
    )
    job.run_folder.save(job.decoder, optimizer, state, job.base, best)
    bar.show_validation(state, nll)


def build_log_row(state: TrainingState, result: StepResult, rate: float) -> dict:
    return {
        "step": state.step,
        "loss": result.loss,
        "lr": rate,
        "grad_norm": result.grad_norm,
        "tokens": state.tokens,
        "tokens_per_second": round(state.tokens / state.stepping, 1),
        "peak_memory_mb": peak_memory_mb(),
        "elapsed_seconds": round(state.elapsed, 2),
    }


def reserve_validation_time(rule: StopRule, state: TrainingState) -> StopRule:
    """A time budget pays for the first and the last validation, too."""
    if rule.seconds is None:
        return rule
    return replace(rule, seconds=max(rule.seconds - 2 * state.validation_seconds, 1.0))


def is_out_of_patience(state: TrainingState, patience: int) -> bool:
    return 0 < patience <= state.validations - state.best_validation
