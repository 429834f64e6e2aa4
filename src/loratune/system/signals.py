"""Handle the signals that end a program: Ctrl-C (SIGINT), `kill` (SIGTERM), a closed terminal (SIGHUP)."""

import signal
import threading
from collections.abc import Callable
from contextlib import contextmanager, suppress

from loratune.system.messages import say

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Interrupted(KeyboardInterrupt):
    """A stop signal has arrived. Like Ctrl-C it passes every `except Exception`."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@contextmanager
def signal_handlers(handler: Callable[[int], None]):
    """Call `handler` with the number of each signal that arrives within the context.

    Signals that the program was started to ignore (`nohup`) stay ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets only the main thread set handlers
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
    """Let every signal raise Interrupted, so that files are closed and temporary ones removed."""
    return signal_handlers(raise_interrupted)


@contextmanager
def stop_requests():
    """Yield a function that returns whether a signal has arrived; a second signal raises Interrupted."""
    requested = []

    def remember(number: int) -> None:
        requested.append(number)
        if len(requested) > 1:
            raise_interrupted(number)
        with suppress(RuntimeError):  # it arrived while something was being printed
            say("Stopping after this step; press Ctrl-C again to stop at once (the newest checkpoint stays).")

    with signal_handlers(remember):
        yield lambda: bool(requested)


@contextmanager
def delayed_signals():
    """Delay signals until the end of the context, such as while several files are renamed."""
    delayed: list[int] = []
    try:
        with signal_handlers(delayed.append):
            yield
    finally:
        for number in delayed:
            signal.raise_signal(number)
