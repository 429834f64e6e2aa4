"""When a run ends, how far it is, and which learning rate that means."""

import math
from dataclasses import dataclass

VALIDATION_TIME_SHARE = 0.1  # share of a time budget that validations may take, the base's included


@dataclass(frozen=True)
class StopRule:
    """A number of optimiser steps or a number of seconds, whichever is given. `pace` is the seconds that a
    step takes.
    """

    steps: int | None = None
    seconds: float | None = None

    def compute_progress(self, step: int, elapsed: float, seconds_per_step: float) -> float:
        """How far the run is in the middle of its next step, from 0 to 1.

        With a time budget it is the share of the time that is gone: whatever the machine's speed turns out to
        be, the learning rate reaches its end when the time does.
        """
        done = (step + 0.5) / self.steps if self.steps else (elapsed + seconds_per_step / 2) / self.seconds
        return min(done, 1.0)

    def is_over(self, step: int, elapsed: float, seconds_per_step: float) -> bool:
        """A time budget is over when the next step would end after it; one step is always taken."""
        if self.steps:
            return step >= self.steps
        return step > 0 and elapsed + seconds_per_step > self.seconds

    def count_affordable_validations(self, validations: int, seconds: float) -> int:
        """How many of these validations, of so many seconds each, a time budget pays for besides the base's;
        at least one.
        """
        if self.steps:
            return validations
        return max(1, min(validations, int(VALIDATION_TIME_SHARE * self.seconds / max(seconds, 1e-9)) - 1))

    def compute_seconds_left(self, step: int, elapsed: float, seconds_per_step: float) -> float:
        return (self.steps - step) * seconds_per_step if self.steps else max(self.seconds - elapsed, 0.0)


def learning_rate_factor(progress: float, warmup: float, schedule: str) -> float:
    """Share of the highest learning rate: linear warm-up from 0, then constant, linear to 0 or half a cosine
    to 0.
    """
    if progress < warmup:
        return progress / warmup
    rest = (progress - warmup) / (1 - warmup)
    return {"constant": 1.0, "linear": 1 - rest, "cosine": (1 + math.cos(math.pi * rest)) / 2}[schedule]
