"""Messages and progress of the library: log records, and progress that is shown only if asked for.

Nothing here prints. The command line calls `console.show_messages` and shows all of it; a Python program gets
the messages from the logger "loratune" and may set `progress_factory` to see progress.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeVar, cast

Item = TypeVar("Item")

logger = logging.getLogger("loratune")
logger.setLevel(logging.INFO)
logger.addHandler(logging.NullHandler())


class Advance(Protocol):
    """Report progress: this many more steps, and a note beside the bar."""

    def __call__(self, steps: int = 1, note: str = "") -> None: ...


ProgressFactory = Callable[[str, int], AbstractContextManager[Advance]]


@contextmanager
def unseen_progress(description: str, total: int) -> Iterator[Advance]:
    """Yield an `advance` that does nothing."""

    def advance(steps: int = 1, note: str = "") -> None:
        pass

    yield advance


# Replaced by a program that shows progress.
progress_factory: ProgressFactory = unseen_progress


def say(message: str) -> None:
    """Log information: what was decided or done."""
    logger.info(message)


def warn(message: str) -> None:
    """Log a warning: what the user probably does not want."""
    logger.warning(message)


def progress(description: str, total: int) -> AbstractContextManager[Advance]:
    """Yield `advance(steps=1, note="")` for work of `total` steps."""
    return progress_factory(description, total)


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Iterate over `items` and report progress; `total` is needed if `items` have no length."""
    if total is None:
        total = len(cast(Sized, items))
    with progress(description, total) as advance:
        for item in items:
            yield item
            advance()
