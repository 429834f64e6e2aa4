"""The training loop: steps, validations and checkpoints until the stop rule ends the run."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from loratune.data.example import Example
from loratune.data.packing import Batch, input_length, iterate_steps
from loratune.errors import UserError
from loratune.models.decoder import Decoder
from loratune.system.memory import peak_memory_mb, release_freed_memory
from loratune.training.checkpoint import TrainingState
from loratune.training.events import CheckpointSaved, Event, Finished, Ready, StepDone, Validated, Warned
from loratune.training.objective import Objective, ResponseNll
from loratune.training.plan import TrainPlan
from loratune.training.run_folder import RunFolder
from loratune.training.schedule import StopRule, learning_rate_factor
from loratune.training.step import NonFiniteError, OutOfMemoryError, StepResult, adamw, train_step
from loratune.training.validate import compute_validation_loss

# Seconds between checkpoints: the most that a crash or a flat battery loses.
SAVE_INTERVAL_SECONDS = 600.0
STOPPED = "The run stopped; its checkpoints are good."


@dataclass(frozen=True)
class TrainingJob:
    """What is trained, on which data, and where the run is stored."""

    decoder: Decoder  # with an adapter
    examples: Sequence[Example]
    val_batches: Sequence[Batch]
    plan: TrainPlan
    run_folder: RunFolder
    base: str  # what PEFT calls the base model
    objective: Objective = field(default_factory=ResponseNll)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Return a batch on the device that the run computes on."""
        return self.objective.collate(examples).to(self.plan.device)


def run_loop(job: TrainingJob, stop_requested: Callable[[], bool]) -> Iterator[Event]:
    """Train until the end, an early stop or a request to stop, and yield the events; `Finished` is the last.

    The clock is monotonic and stops while the machine sleeps (on Linux and macOS): a laptop whose lid is
    closed during a time budget trains for the rest of it afterwards.

    Args:
        job: the run; if it has checkpoints, it continues from the newest.
        stop_requested: called before each step; the run stops if it returns True.

    Raises:
        UserError: a loss or gradient is not finite, or an example does not fit into memory.
    """
    plan = job.plan
    optimizer = adamw(job.decoder.train(), plan.weight_decay)
    state = job.run_folder.restore(job.decoder, optimizer)
    yield Ready(state)
    if state.base_nll is None:
        yield from validate(job, optimizer, state)
    validations = plan.stop_rule.count_affordable_validations(plan.validations, state.validation_seconds)
    rule = reserve_validation_time(plan.stop_rule, state)
    started = time.perf_counter() - state.elapsed
    is_complete = False
    for groups in iterate_remaining_steps(job, state):
        state.elapsed = time.perf_counter() - started
        is_complete = rule.is_over(state.step, state.elapsed, state.seconds_per_step)
        is_complete = is_complete or is_out_of_patience(state, plan.patience)
        if is_complete or stop_requested():
            break
        if state.elapsed - job.run_folder.saved_at >= SAVE_INTERVAL_SECONDS:
            yield save_checkpoint(job, optimizer, state)
        progress = rule.compute_progress(state.step, state.elapsed, state.seconds_per_step)
        try:
            result, rate = take_step(job, optimizer, groups, state=state, progress=progress)
        except OutOfMemoryError:
            yield halve_micro_tokens(job, groups, state)
            continue
        state.elapsed = time.perf_counter() - started
        job.run_folder.append_log(build_log_row(state, result, rate))
        seconds_left = rule.compute_seconds_left(state.step, state.elapsed, state.seconds_per_step)
        yield StepDone(state, result, rate, progress, seconds_left)
        if int(progress * validations) >= state.validations:
            yield from validate(job, optimizer, state)
    if is_complete and state.validated_step < state.step:
        yield from validate(job, optimizer, state)
    if not is_complete:
        yield save_checkpoint(job, optimizer, state)
    yield Finished(state, is_complete)


def iterate_remaining_steps(job: TrainingJob, state: TrainingState) -> Iterator[list[list[int]]]:
    """Yield the remaining steps, each in micro-batches of the size that the state has at that time."""
    step = job.plan.step
    lengths = [input_length(example) for example in job.examples]
    while True:
        size = state.micro_tokens or job.plan.micro_tokens
        for groups in iterate_steps(lengths, step.batch_tokens, size, seed=step.seed, start=state.step):
            yield groups
            if size != (state.micro_tokens or job.plan.micro_tokens):
                break


def save_checkpoint(
    job: TrainingJob, optimizer: torch.optim.Optimizer, state: TrainingState
) -> CheckpointSaved:
    job.run_folder.save(job.decoder, optimizer, state, job.base, best=False)
    return CheckpointSaved(state)


def halve_micro_tokens(job: TrainingJob, groups: list[list[int]], state: TrainingState) -> Warned:
    """Halve the size of the micro-batches, measured by the largest one that can be divided.

    Raises:
        UserError: each example was already computed alone.
    """
    step = state.step + 1
    lengths = [[input_length(job.examples[number]) for number in group] for group in groups]
    tokens = max((sum(group) for group in lengths if len(group) > 1), default=None)
    if tokens is None:
        raise UserError(
            f"step {step}: not enough memory for a row of {max(map(max, lengths)):,} tokens, computed alone. "
            f"{STOPPED} Close other programs and go on with it, or start a run with `low_memory` or a lower "
            f"`max_tokens` (now {job.plan.max_tokens:,})"
        )
    release_freed_memory()
    state.micro_tokens = tokens // 2
    return Warned(
        f"step {step}: not enough memory for a micro-batch of {tokens:,} tokens; from here on "
        f"{state.micro_tokens:,}, with the same result"
    )


def take_step(
    job: TrainingJob,
    optimizer: torch.optim.Optimizer,
    groups: list[list[int]],
    *,
    state: TrainingState,
    progress: float,
) -> tuple[StepResult, float]:
    """Take one optimiser step, count it in the state, and return its result and its learning rate."""
    started = time.perf_counter()
    plan = job.plan
    rate = plan.learning_rate * learning_rate_factor(progress, plan.warmup, plan.schedule)
    # Dropout, too, is a function of (seed, step).
    torch.manual_seed(plan.step.seed * 1_000_003 + state.step)
    batches = [job.collate([job.examples[number] for number in group]) for group in groups]
    try:
        result = train_step(
            job.decoder, optimizer, batches, objective=job.objective, learning_rate=rate, clip=plan.clip
        )
    except NonFiniteError as error:
        diagnosis = diagnose_non_finite(job, groups, rate)
        raise UserError(f"step {state.step + 1}: {error}. {STOPPED} {diagnosis}") from error
    state.step, state.tokens = state.step + 1, state.tokens + result.tokens
    state.stepping += time.perf_counter() - started
    return result, rate


def diagnose_non_finite(job: TrainingJob, groups: list[list[int]], rate: float) -> str:
    """Explain a non-finite step: the records whose loss is non-finite on their own, else the settings."""
    examples = [job.examples[number] for group in groups for number in group]
    if broken := [example.id for example in examples if not is_loss_finite(job, example)]:
        return (
            f"The loss is non-finite for these records on their own: {', '.join(broken)}. "
            "Inspect or remove them, then start a new run"
        )
    return (
        f"Start a run with a lower `learning_rate` (now {rate:.2g}) or with `precision` fp32, or inspect the "
        f"records of this step: {', '.join(example.id for example in examples)}"
    )


def is_loss_finite(job: TrainingJob, example: Example) -> bool:
    return math.isfinite(compute_validation_loss(job.decoder, [job.collate([example])], job.objective))


def validate(job: TrainingJob, optimizer: torch.optim.Optimizer, state: TrainingState) -> Iterator[Event]:
    """Compute and log the validation loss and save a checkpoint; the first validation is the base model's."""
    started = time.perf_counter()
    nll = compute_validation_loss(job.decoder, job.val_batches, job.objective)
    if not math.isfinite(nll):
        raise UserError(
            f"step {state.step}: the validation loss is {nll}. {STOPPED} "
            "Try a lower `learning_rate` or `precision` fp32"
        )
    release_freed_memory()  # not at each step, where it would cost a tenth of the speed
    if state.base_nll is None:
        state.base_nll, state.validation_seconds = nll, time.perf_counter() - started
        if nll > math.log(job.decoder.spec.vocab_size):
            yield Warned(
                "the base model predicts worse than chance: is the tokenizer in its folder another model's?"
            )
    state.validations, state.validated_step = state.validations + 1, state.step
    is_best = state.best_nll is None or nll < state.best_nll
    if is_best:
        state.best_nll, state.best_step, state.best_validation = nll, state.step, state.validations
    row = {"step": state.step, "val_nll": nll, "elapsed_seconds": round(state.elapsed, 2)}
    job.run_folder.append_log(row)
    job.run_folder.save(job.decoder, optimizer, state, job.base, is_best)
    yield Validated(state, nll)
    yield CheckpointSaved(state)


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
    """Subtract the first and the last validation from a time budget, which includes them."""
    if rule.seconds is None:
        return rule
    return replace(rule, seconds=max(rule.seconds - 2 * state.validation_seconds, 1.0))


def is_out_of_patience(state: TrainingState, patience: int) -> bool:
    return 0 < patience <= state.validations - state.best_validation
