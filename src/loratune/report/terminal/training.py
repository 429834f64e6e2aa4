"""What a person sees while the model trains."""

from contextlib import contextmanager
from datetime import timedelta

from rich.progress import BarColumn, Progress, TextColumn

from loratune.system.console import console, say
from loratune.training.checkpoint import TrainingState
from loratune.training.step import StepResult


class TrainingBar:
    """A bar with loss, validation loss, tokens/s and time left; in a log file, a line at each validation."""

    def __init__(self, bar: Progress):
        self.bar = bar
        self.task = bar.add_task("train", total=1.0, facts="measuring the base model ...")
        self.loss: float | None = None

    def show(self, progress: float, state: TrainingState, result: StepResult, seconds_left: float) -> None:
        self.loss = result.loss if self.loss is None else 0.9 * self.loss + 0.1 * result.loss
        speed, left = state.tokens / state.stepping, timedelta(seconds=round(seconds_left))
        facts = (
            f"step {state.step}  loss {self.loss:.3f}  val {state.best_nll:.3f}  {speed:.0f} tokens/s  "
            f"{left} left"
        )
        self.bar.update(self.task, completed=progress, facts=facts)

    def complete(self) -> None:
        self.bar.update(self.task, completed=1.0)

    def show_validation(self, state: TrainingState, val_nll: float) -> None:
        """A validation, on a line that stays."""
        loss = f"training loss {self.loss:.3f}, " if self.loss else ""
        best = " (best so far)" if state.best_step == state.step and state.step else ""
        say(
            f"step {state.step}, {timedelta(seconds=round(state.elapsed))}: {loss}validation loss "
            f"{val_nll:.4f}{best}"
        )


@contextmanager
def training_bar():
    columns = (
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[facts]}"),
    )
    with Progress(*columns, console=console) as bar:
        yield TrainingBar(bar)
