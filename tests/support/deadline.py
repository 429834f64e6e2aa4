"""Limit the time of one example, so that a hang fails instead of stopping the tests."""

import signal
from contextlib import contextmanager

SECONDS = 60  # an example takes milliseconds; a busy machine is no fault


@contextmanager
def enforce_deadline(seconds: float = SECONDS):
    def late(*_):
        raise AssertionError(f"still at work after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
