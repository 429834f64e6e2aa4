"""What a person sees while a command runs: messages, warnings, tables and progress bars."""

import os
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class PatientStream:
    """A stream that cannot be written to now (a log on a disk that is full) or any more (a closed terminal) stops no work."""

    def __init__(self, stream: IO[str]):
        self.stream = stream

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> None:
        unless_unwritable(self.stream.write, text)

    def flush(self) -> None:
        unless_unwritable(self.stream.flush)


def unless_unwritable(write: Callable, *text: str) -> None:
    try:
        write(*text)
    except BrokenPipeError:
        raise  # for good: the console sees to it
    except OSError:
        pass


class PatientConsole(Console):
    file = Console.file.getter(lambda self: PatientStream(Console.file.fget(self)))

    def on_broken_pipe(self) -> None:
        """The reader is gone (`loratune train | head`): the work goes on, unseen."""
        self.file = open(os.devnull, "w")  # noqa: SIM115 - open until the program ends


# The command line sets `console.stderr = True` for --json, so that stdout holds the JSON object alone.
console = PatientConsole(highlight=False)


def say(message: str) -> None:
    console.print(message, markup=False, soft_wrap=True)


def warn(message: str) -> None:
    console.print(f"warning: {message}", style="yellow", markup=False, soft_wrap=True)


@contextmanager
def progress(description: str, total: int):
    """A progress bar with the time left. Yields `advance(steps=1, note="")`; a log file gets the last state only."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=total)
        yield lambda steps=1, note="": bar.update(task, advance=steps, description=f"{description} {note}".rstrip())


def track(items: Iterable, description: str, total: int | None = None):
    """Iterate over `items` under a progress bar."""
    total = len(items) if total is None else total
    with progress(description, total) as advance:
        for item in items:
            yield item
            advance()
