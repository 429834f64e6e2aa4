"""What asks a program to end: Ctrl-C (SIGINT), `kill` (SIGTERM), and a terminal that was closed (SIGHUP)."""

import signal
import threading
from collections.abc import Callable
from contextlib import contextmanager, suppress

from loratune.system.messages import say

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Interrupted(KeyboardInterrupt):
    """One of the signals has come. Like Ctrl-C it passes every `except Exception`, and what is half-written
    is removed.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@contextmanager
def signal_handlers(handler: Callable[[int], None]):
    """`handler` is told the signal's number. Those that this program was started to ignore (`nohup`) stay
    ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets no other thread set handlers
        return
    numbers = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    old = {number: signal.signal(number, lambda number, frame: handler(number)) for number in numbers}
    try:
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)


def raise_interrupted(number: int) -> None:
    raise Interrupted(number)


def interrupting_cleanly():
    """Every signal raises Ended, so that files are closed and half-written ones removed, whichever it is."""
    return signal_handlers(raise_interrupted)


@contextmanager
def stop_requests():
    """Yield a function that says whether a signal has come; a second one raises Ended at once."""
    requested = []

    def remember(number: int) -> None:
        requested.append(number)
        if len(requested) > 1:
            raise_interrupted(number)
        with suppress(RuntimeError):  # it came while something was being printed
            say("Stopping after this step; press Ctrl-C again to stop at once (the newest checkpoint stays).")

    with signal_handlers(remember):
        yield lambda: bool(requested)


@contextmanager
def delayed_signals():
    """Signals that come meanwhile take effect afterwards: for the instant in which several files take their
    places.
    """
    came: list[int] = []
    try:
        with signal_handlers(came.append):
            yield
    finally:
        for number in came:
            signal.raise_signal(number)
