"""Show messages, warnings, tables and progress bars while a command runs."""

import logging
import os
import unicodedata
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import IO, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment

from loratune.errors import UserError, format_named_settings
from loratune.system import messages

# These reverse the writing direction, so that a text does not look like what it is (CVE-2021-42574, "Trojan
# Source").
BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class TolerantStream:
    """A stream that ignores write errors, such as of a log on a full disk or a closed terminal."""

    def __init__(self, stream: IO[str]):
        self.stream = stream

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> None:
        ignore_unwritable(self.stream.write, text)

    def flush(self) -> None:
        ignore_unwritable(self.stream.flush)


def ignore_unwritable(write: Callable[..., object], *text: str) -> None:
    try:
        write(*text)
    except BrokenPipeError:
        raise  # permanent: the console handles it
    except OSError:
        pass


class TolerantConsole(Console):
    @property
    def file(self) -> IO[str]:
        """The output stream, which tolerates write errors."""
        return cast(IO[str], TolerantStream(super().file))

    @file.setter
    def file(self, stream: IO[str]) -> None:
        Console.file.__set__(self, stream)

    def on_broken_pipe(self) -> None:
        """Continue without output when the reader has closed the pipe (`loratune train | head`)."""
        self.file = open(os.devnull, "w")  # noqa: SIM115 - open until the program ends

    def render(self, renderable, options=None) -> Iterator[Segment]:
        """Render without control characters: no text of a model or file may control the terminal."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=make_printable(segment.text))


# The command line sets `console.stderr = True` for --json, so that stdout holds the JSON object alone.
# Without markup and emoji codes: a file may be called [/bold].jsonl, and a prompt may hold :key:.
console = TolerantConsole(highlight=False, markup=False, emoji=False)


def make_printable(text: str) -> str:
    """Replace control characters, such as those of escape sequences, and lone surrogates by U+FFFD."""
    if text.isprintable():
        return text
    return "".join("\N{REPLACEMENT CHARACTER}" if is_control(letter) else letter for letter in text)


def is_control(letter: str) -> bool:
    """Return whether a character controls the terminal or is half of a surrogate pair.

    C1 characters count, too: U+009B alone begins an escape sequence.
    """
    return letter not in "\n\t" and (
        unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or letter in BIDI_CONTROLS
    )


def say(message: str) -> None:
    console.print(make_printable(message), soft_wrap=True)


def warn(message: str) -> None:
    console.print(make_printable(f"warning: {message}"), style="yellow", soft_wrap=True)


class ConsoleHandler(logging.Handler):
    """Prints the library's log messages, with settings written as command-line options."""

    def __init__(self, format_setting: Callable[[str], str], known: Collection[str]):
        super().__init__()
        self.format_setting, self.known = format_setting, known

    def emit(self, record: logging.LogRecord) -> None:
        show = warn if record.levelno >= logging.WARNING else say
        show(format_named_settings(record.getMessage(), self.format_setting, self.known))


def show_messages(format_setting: Callable[[str], str] = str, known: Collection[str] = ()) -> None:
    """Start to show the library's messages and progress.

    Args:
        format_setting: how settings are written on the command line.
        known: the settings that are rewritten that way where they stand in backticks.
    """
    for handler in find_handlers():
        messages.logger.removeHandler(handler)
    messages.logger.addHandler(ConsoleHandler(format_setting, known))
    messages.logger.propagate = False
    messages.progress_factory = progress


def find_handlers() -> list[ConsoleHandler]:
    return [handler for handler in messages.logger.handlers if isinstance(handler, ConsoleHandler)]


def describe_error(error: UserError) -> str:
    """Return an error's problems as the command line shows them."""
    for handler in find_handlers():
        return "\n".join(one.render(handler.format_setting, handler.known) for one in error.details)
    return str(error)


@contextmanager
def progress(description: str, total: int):
    """Show a progress bar and yield `advance(steps=1, note="")`; a log file gets only the last state."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left", markup=False),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=total)
        yield lambda steps=1, note="": bar.update(
            task, advance=steps, description=f"{description} {note}".rstrip()
        )
