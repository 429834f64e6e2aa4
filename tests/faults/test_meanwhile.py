"""Outside influences on a run: another run, changing files, a clock that is set."""

import json
import os
import shutil
import time
from datetime import datetime

import pytest

from loratune.cli.main import main
from loratune.errors import UserError
from loratune.system.atomic import file_lock
from loratune.system.read import hash_file
from loratune.training import loop
from loratune.training.setup import defaults, inputs
from support.faults import RUN, assert_refused, start_process
from support.training_runs import TRAIN, are_same_tensors, load_adapter_tensors, train

ONE = ["--steps", "3", "--validations", "2", "--run", "one", "--out", "tuned"]


def after_first_step(monkeypatch, action) -> None:
    original, results = loop.train_step, []

    def step(*arguments, **options):
        results.append(original(*arguments, **options))
        if len(results) == 1:
            action()
        return results[-1]

    monkeypatch.setattr(loop, "train_step", step)


def test_second_concurrent_run_in_a_folder_is_refused(place, capsys):
    """The second one ends at once, whichever folder they share, and says who has it; a killed one leaves no
    lock behind.
    """
    first = start_process(*TRAIN, "--steps", "100000", "--run", "one", "--out", "tuned")
    try:
        metrics = place / "runs" / "one" / "metrics.jsonl"
        while (not metrics.is_file() or metrics.read_text().count("\n") < 3) and first.poll() is None:
            time.sleep(0.02)
        error = assert_refused(capsys, *TRAIN, "--steps", "3", "--run", "two", "--out", "tuned")
        assert (
            f"tuned: process {first.pid} is writing there; wait until it has ended, or choose another --out"
            in error
        )
        assert not (place / "runs" / "two").exists()
        for words in (["train", "--resume"], [*TRAIN, "--steps", "3", "--run", "one", "--out", "other"]):
            assert f"runs/one: process {first.pid} is writing there" in assert_refused(capsys, *words)
        rows = metrics.read_text().count("\n")
    finally:
        first.kill()
        first.communicate()
    assert (place / ".tuned.lock").exists() and rows >= 3
    assert main([*RUN, "--run", "three", "--out", "tuned"]) == 0
    assert (
        sorted(path.name for path in place.glob(".*.lock"))
        == sorted(path.name for path in place.glob("runs/.three.lock"))
        == []
    )


def test_lock_is_held_until_its_process_ends(tmp_path):
    with file_lock(tmp_path / "a", "wait"), file_lock(tmp_path / "b", "wait"):
        refusal = pytest.raises(UserError, match=f"a: process {os.getpid()} is writing there; wait")
        with refusal, file_lock(tmp_path / "a", "wait"):
            pass
    with file_lock(tmp_path / "a", "wait"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["changed", "deleted"])
def test_data_changed_during_the_run_is_not_read_again(place, whole, monkeypatch, what):
    """The rows are in memory: the run goes on, and the adapter says what it was trained on, not what is there
    at the end.
    """
    before = {name: hash_file(place / "data" / f"{name}.jsonl") for name in ("train", "val")}
    (place / "data" / "prepare_report.json").write_text(
        '{"settings": {"fact_tokens": 99, "finqa_target": "program"}}'
    )

    def happens():
        if what == "deleted":
            shutil.rmtree(place / "data")
        else:
            for path in (place / "data").iterdir():
                path.write_text("{}\n")

    after_first_step(monkeypatch, happens)
    assert train(*ONE) == 0
    assert are_same_tensors(load_adapter_tensors(place / "tuned"), whole)
    facts = json.loads((place / "tuned" / "loratune.json").read_text())
    assert facts["data"] == before
    assert facts["prepared"]["fact_tokens"] == 99


def test_data_changed_while_the_base_loads_is_not_mixed_up(place, whole, cache, monkeypatch):
    """Neither the run nor the cache takes the old rows for those of the new file."""
    monkeypatch.setenv("LORATUNE_CACHE", str(place / "cache"))
    original, path = inputs.load_model, place / "data" / "train.jsonl"
    lines = path.read_text().splitlines(keepends=True)

    def load_base(found, **options):
        path.write_text("".join(lines[:20]))
        return original(found, **options)

    with monkeypatch.context() as patch:
        patch.setattr(inputs, "load_model", load_base)
        assert train(*ONE) == 0
    assert are_same_tensors(load_adapter_tensors(place / "tuned"), whole)
    facts = json.loads((place / "runs" / "one" / "facts.json").read_text())
    assert facts["train.jsonl"] != hash_file(path)
    assert train(*ONE, "--run", "two", "--out", "second") == 0
    assert not are_same_tensors(load_adapter_tensors(place / "second"), whole)
    path.write_text("".join(lines))
    assert train(*ONE, "--run", "three", "--out", "third") == 0
    assert are_same_tensors(load_adapter_tensors(place / "third"), whole)


def test_base_deleted_during_the_run_is_no_longer_needed(place, whole, monkeypatch):
    after_first_step(monkeypatch, lambda: shutil.rmtree(place / "base"))
    assert train(*ONE) == 0
    assert are_same_tensors(load_adapter_tensors(place / "tuned"), whole)


class Clock(datetime):
    """Two hours earlier at each look."""

    @classmethod
    def now(cls, tz=None):
        cls.looks = getattr(cls, "looks", 0) + 1
        return datetime(2024, 3, 31, 12 - 2 * cls.looks, 0, 0)


def test_clock_set_back_does_not_affect_the_run(place, whole, capsys, monkeypatch):
    """The run's time comes from a clock that nobody sets."""
    moments = iter(range(10**6, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: next(moments))
    monkeypatch.setattr(defaults, "datetime", Clock)
    assert main([*RUN, "--out", "tuned", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert 0 < first["elapsed_seconds"] < 600 and are_same_tensors(
        load_adapter_tensors(place / "tuned"), whole
    )
    monkeypatch.undo()


def test_two_runs_in_one_second_have_different_names(place, monkeypatch):
    class Still(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2024, 3, 31, 12, 0, 0)

    monkeypatch.setattr(defaults, "datetime", Still)
    for _ in range(3):
        assert main([*RUN, "--out", "tuned"]) == 0
    assert sorted(os.listdir("runs")) == ["2024-03-31-120000", "2024-03-31-120000-2", "2024-03-31-120000-3"]
