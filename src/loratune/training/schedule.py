"""When a run ends, how far it is, and which learning rate that means."""

import math
from dataclasses import dataclass

VALIDATION_TIME_SHARE = 0.1  # share of a time budget that validations may take, the base's included


@dataclass(frozen=True)
class StopRule:
    """A number of optimiser steps or a number of seconds, whichever is given."""

    steps: int | None = None
    seconds: float | None = None

    def compute_progress(self, step: int, elapsed: float, seconds_per_step: float) -> float:
        """How far the run is in the middle of its next step, from 0 to 1.

        With a time budget it is the share of the time that is gone: whatever the machine's speed turns out to
        be, the learning rate reaches its end when the time does.
        """
        done = (
            (step + 0.5) / self.steps
            if self.steps
            else (elapsed + seconds_per_step / 2) / self.require_seconds()
        )
        return min(done, 1.0)

    def is_over(self, step: int, elapsed: float, seconds_per_step: float) -> bool:
        """A time budget is over when the next step would end after it; one step is always taken."""
        if self.steps:
            return step >= self.steps
        return step > 0 and elapsed + seconds_per_step > self.require_seconds()

    def count_affordable_validations(self, validations: int, seconds: float) -> int:
        """Return how many of the validations a time budget pays for besides the base's; at least one.

        Args:
            validations: how many are wanted.
            seconds: what each takes.
        """
        if self.steps:
            return validations
        payable = int(VALIDATION_TIME_SHARE * self.require_seconds() / max(seconds, 1e-9)) - 1
        return max(1, min(validations, payable))

    def require_seconds(self) -> float:
        """Return the time budget of a rule that has no number of steps."""
        assert self.seconds is not None, "a stop rule has steps or seconds"
        return self.seconds

    def compute_seconds_left(self, step: int, elapsed: float, seconds_per_step: float) -> float:
        if self.steps:
            return (self.steps - step) * seconds_per_step
        return max(self.require_seconds() - elapsed, 0.0)


def learning_rate_factor(progress: float, warmup: float, schedule: str) -> float:
    """Share of the highest learning rate: linear warm-up from 0, then constant, linear to 0 or half a cosine
    to 0.
    """
    if progress < warmup:
        return progress / warmup
    rest = (progress - warmup) / (1 - warmup)
    return {"constant": 1.0, "linear": 1 - rest, "cosine": (1 + math.cos(math.pi * rest)) / 2}[schedule]
