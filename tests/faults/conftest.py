"""A small model, data and an adapter, built once and copied for each test."""

import json

import pytest

from loratune.cli.main import main
from support.faults import RUN, enter_copy
from support.small_models import save_model
from support.training_runs import ROWS, load_adapter_tensors
from support.tuned_models import save_tuned


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    template = tmp_path_factory.mktemp("template")
    save_model(template / "base")
    (template / "data").mkdir()
    for name, rows in (("train", ROWS[8:]), ("val", ROWS[:4]), ("test", ROWS[4:8])):
        (template / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (template / "mine.jsonl").write_text((template / "data" / "train.jsonl").read_text())
    (template / "test.json").write_text(json.dumps(["What is a bond?", "Count."]))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(template)
        save_tuned(template)
    return template


@pytest.fixture
def place(template, cache, tmp_path, monkeypatch):
    """The working directory."""
    return enter_copy(tmp_path / "place", template, cache, monkeypatch)


@pytest.fixture(scope="session")
def whole(template, cache, tmp_path_factory):
    """The adapter of a run of three steps without a fault."""
    with pytest.MonkeyPatch.context() as patch:
        place = enter_copy(tmp_path_factory.mktemp("whole"), template, cache, patch)
        assert main([*RUN, "--run", "whole", "--out", "whole"]) == 0
    return load_adapter_tensors(place / "whole")
