import os
import signal

# No test may reach a hub by accident; those of the hub code set their own address.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# `make test` runs two processes side by side. Each gets cores of its own: torch's threads wait for each other
# by spinning.
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[int(worker[2:]) :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])] or cores)

import pytest
from hypothesis import settings

# A busy machine is no reason to fail.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

# A shell starts what runs in the background with Ctrl-C ignored, which would be respected and go on to every
# process here.
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session")
def smollm2():
    """The real small model that the quickstart uses."""
    from loratune.models.load import load_model
    from loratune.models.resolve import resolve_model

    return load_model(resolve_model("smollm2-135m"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A folder for LORATUNE_CACHE, so that runs of the tests share no measurements."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def messages_on_stdout(monkeypatch):
    """A test with --json sends them to stderr, for itself alone."""
    from loratune.cli.arguments import SETTINGS
    from loratune.config.base import format_flag
    from loratune.system.console import console, show_messages

    monkeypatch.setattr(console, "stderr", False)
    show_messages(format_flag, SETTINGS)
