"""A small model, data and an adapter, made once and copied to where each test works."""

import json

import pytest

from loratune.cli.main import main
from support.faults import RUN, at
from support.small_models import save_model
from support.training_runs import ROWS, adapter
from support.tuned_models import save_tuned


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    made = tmp_path_factory.mktemp("made")
    save_model(made / "base")
    (made / "data").mkdir()
    for name, rows in (("train", ROWS[8:]), ("val", ROWS[:4]), ("test", ROWS[4:8])):
        (made / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (made / "mine.jsonl").write_text((made / "data" / "train.jsonl").read_text())
    (made / "test.json").write_text(json.dumps(["What is a bond?", "Count."]))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        save_tuned(made)
    return made


@pytest.fixture
def place(made, cache, tmp_path, monkeypatch):
    """The working directory."""
    return at(tmp_path / "place", made, cache, monkeypatch)


@pytest.fixture(scope="session")
def whole(made, cache, tmp_path_factory):
    """The adapter of a run of three steps that nothing befell."""
    with pytest.MonkeyPatch.context() as patch:
        place = at(tmp_path_factory.mktemp("whole"), made, cache, patch)
        assert main([*RUN, "--run", "whole", "--out", "whole"]) == 0
    return adapter(place / "whole")
