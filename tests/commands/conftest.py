"""Where commands are run: with an adapter and held-out rows, or before there is an adapter. Some tests bring
their own place.
"""

import pytest

from support.evaluating import make_place
from support.training_runs import write_run_inputs


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a base, an adapter and held-out rows; also the working directory."""
    make_place(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def workplace(tmp_path, tmp_path_factory, monkeypatch):
    """A folder with data and a model, but no adapter yet; also the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORATUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
    write_run_inputs(tmp_path)
    return tmp_path
