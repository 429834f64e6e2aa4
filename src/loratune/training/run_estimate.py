"""Estimate how long a training run takes and how much memory it needs, from a measurement and the plan."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from loratune.data.example import Example
from loratune.data.packing import input_length, plan_epoch
from loratune.training.autotune import Measurement
from loratune.training.plan import TrainPlan


@dataclass(frozen=True)
class RunEstimate:
    """The estimated length and memory of a run."""

    steps: int
    seconds: float
    tokens_per_second: float
    peak_memory_mb: float

    def __str__(self) -> str:
        duration = timedelta(seconds=round(self.seconds))
        return (
            f"about {self.steps:,} steps in {duration} at {self.tokens_per_second:,.0f} tokens/s, "
            f"with about {self.peak_memory_mb / 1000:.1f} GB of memory"
        )


def estimate_run(
    measurement: Measurement,
    besides_weights: int,
    plan: TrainPlan,
    *,
    examples: Sequence[Example],
    val_examples: Sequence[Example],
) -> RunEstimate:
    """Estimate the whole run, validations included.

    Args:
        measurement: of the whole model.
        besides_weights: bytes of the interpreter, the libraries and the data.
        plan: of the run.
        examples: for training.
        val_examples: for validation.
    """
    rule, step = plan.stop_rule, plan.step
    lengths = [input_length(example) for example in examples]
    epoch = plan_epoch(lengths, step.batch_tokens, plan.micro_tokens, seed=step.seed, epoch=0)
    seconds_per_step = measurement.train_seconds * sum(lengths) / len(epoch)
    seconds_per_validation = measurement.validation_seconds * sum(map(input_length, val_examples))
    validations = 1 + rule.count_affordable_validations(plan.validations, seconds_per_validation)
    validation_seconds = seconds_per_validation * validations
    steps = rule.steps or max(1, int((rule.require_seconds() - validation_seconds) / seconds_per_step))
    largest = max(sum(lengths[number] for number in group) for groups in epoch[:steps] for group in groups)
    unused = (measurement.micro_tokens - largest) * measurement.token_memory
    memory = besides_weights + measurement.memory - unused
    return RunEstimate(
        steps=steps,
        seconds=steps * seconds_per_step + validation_seconds,
        tokens_per_second=1 / measurement.train_seconds,
        peak_memory_mb=round(memory / 1e6, 1),
    )
