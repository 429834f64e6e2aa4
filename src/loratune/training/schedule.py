"""Stop rule and learning rate schedule: when a run ends, its progress, and the learning rate there."""

import math
from dataclasses import dataclass

VALIDATION_TIME_SHARE = 0.1  # of a time budget, including the base model's validation


@dataclass(frozen=True)
class StopRule:
    """The length of a run: a number of optimiser steps, or else a number of seconds."""

    steps: int | None = None
    seconds: float | None = None

    def compute_progress(self, step: int, elapsed: float, seconds_per_step: float) -> float:
        """Return the run's progress in the middle of its next step, from 0 to 1.

        With a time budget it is the share of the time that has passed, so that the learning rate's schedule
        ends with the budget, however fast the machine turns out to be.
        """
        if self.steps:
            return min((step + 0.5) / self.steps, 1.0)
        return min((elapsed + seconds_per_step / 2) / self.require_seconds(), 1.0)

    def is_over(self, step: int, elapsed: float, seconds_per_step: float) -> bool:
        """Return whether the run is over.

        A time budget ends when the next step would exceed it; one step is always taken.
        """
        if self.steps:
            return step >= self.steps
        return step > 0 and elapsed + seconds_per_step > self.require_seconds()

    def count_affordable_validations(self, validations: int, seconds: float) -> int:
        """Return how many validations, besides the base model's, fit into the time budget; at least one.

        Args:
            validations: how many are planned.
            seconds: the time of each.
        """
        if self.steps:
            return validations
        affordable = int(VALIDATION_TIME_SHARE * self.require_seconds() / max(seconds, 1e-9)) - 1
        return max(1, min(validations, affordable))

    def require_seconds(self) -> float:
        """Return the time budget, which a rule without a number of steps must have."""
        assert self.seconds is not None, "a stop rule has steps or seconds"
        return self.seconds

    def compute_seconds_left(self, step: int, elapsed: float, seconds_per_step: float) -> float:
        if self.steps:
            return (self.steps - step) * seconds_per_step
        return max(self.require_seconds() - elapsed, 0.0)


def learning_rate_factor(progress: float, warmup: float, schedule: str) -> float:
    """Return the factor on the peak learning rate, from 0 to 1.

    Args:
        progress: of the run, from 0 to 1.
        warmup: the share of the run with a linear rise from 0.
        schedule: after the warm-up: "constant", "linear" to 0 or "cosine" to 0.
    """
    if progress < warmup:
        return progress / warmup
    decay = (progress - warmup) / (1 - warmup)
    return {"constant": 1.0, "linear": 1 - decay, "cosine": (1 + math.cos(math.pi * decay)) / 2}[schedule]
