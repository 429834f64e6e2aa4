"""Show a training run on the terminal while it goes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.progress import BarColumn, Progress, TextColumn

from loratune.system.console import console, say
from loratune.training.events import Event, Finished, StepDone, Validated


class TrainingBar:
    """A bar with loss, validation loss, tokens/s and time left; in a log file, a line at each validation."""

    def __init__(self, bar: Progress):
        self.bar = bar
        self.task = bar.add_task("train", total=1.0, status="measuring the base model ...")
        self.loss: float | None = None  # moving average

    def show(self, event: Event) -> None:
        """Show an event of the training loop."""
        match event:
            case StepDone():
                self.show_step(event)
            case Validated():
                self.show_validation(event)
            case Finished():
                if event.is_complete:
                    self.bar.update(self.task, completed=1.0)
                self.bar.stop()  # what is said next stands below it

    def show_step(self, event: StepDone) -> None:
        loss, state = event.result.loss, event.state
        self.loss = loss if self.loss is None else 0.9 * self.loss + 0.1 * loss
        speed, left = state.tokens / state.stepping, timedelta(seconds=round(event.seconds_left))
        status = (
            f"step {state.step}  loss {self.loss:.3f}  val {state.best_nll:.3f}  {speed:.0f} tokens/s  "
            f"{left} left"
        )
        self.bar.update(self.task, completed=event.progress, status=status)

    def show_validation(self, event: Validated) -> None:
        """Print a validation on a line that stays."""
        state, elapsed = event.state, timedelta(seconds=round(event.state.elapsed))
        loss = f"training loss {self.loss:.3f}, " if self.loss else ""
        best = " (best so far)" if state.best_step == state.step and state.step else ""
        say(f"step {state.step}, {elapsed}: {loss}validation loss {event.nll:.4f}{best}")


@contextmanager
def training_bar() -> Iterator[TrainingBar]:
    columns = (
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[status]}"),
    )
    bar = Progress(*columns, console=console)
    bar.start()
    try:
        yield TrainingBar(bar)
    finally:
        if bar.live.is_started:
            bar.stop()
