"""A run that is killed at any instant and resumed ends with the same bits and the same log."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time

import pytest

from loratune.cli.main import main
from loratune.data.sources.dolly import load_dolly
from support.killing import (
    AT_VALIDATIONS,
    DONE,
    KILLED,
    assert_same_end,
    finish,
    list_writes_of_last_run,
    start,
    wait_for_exit_code,
)
from support.training_runs import write_run_inputs

STEPS = ("--steps", "5", "--validations", "3")
# One write of each kind: the run's folder, a checkpoint, the link to the best one, the pruning, the adapter,
# the summary.
KINDS = (
    r"os.rename runs/.*facts.json",
    r"os.rename runs/\.[^/]*$",
    r"os.rename .*/\.step-000000[^/]*$",
    r"os.rename .*/\.step-000003[^/]*$",  # between two validations
    r"os.rename .*\.best\.tmp$",
    r"os.remove optimizer.safetensors$",
    r"os.rename adapters/.*/loratune.json$",
    r"open .*/\.summary.json",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data, a model and a whole run of five steps that saves at its validations; all others do
    at each step.
    """
    place = tmp_path_factory.mktemp("kill") / "place"
    place.mkdir()
    write_run_inputs(place)
    finish(place, "whole", *STEPS, save_every=AT_VALIDATIONS)
    return place


@pytest.fixture(scope="module")
def writes(place) -> list[str]:
    """What such a run writes, one after the other."""
    finish(place, "counted", *STEPS)
    assert_same_end(place / "runs/whole", place / "runs/counted")
    return list_writes_of_last_run(place)


def kill_and_resume(place, name: str, instant: int) -> None:
    assert wait_for_exit_code(start(place, name, *STEPS, kill_at=instant)) == KILLED
    finish(place, name, *STEPS)
    assert_same_end(place / "runs/whole", place / "runs" / name)


@pytest.mark.parametrize("kind", KINDS)
def test_run_killed_at_each_kind_of_write_resumes_to_the_bit(place, writes, kind):
    instants = [number for number, write in enumerate(writes) if re.search(kind, write)]
    kill_and_resume(place, f"kind{KINDS.index(kind)}", instants[-1])


@pytest.mark.slow
def test_run_killed_at_any_write_and_again_while_resuming(place, tmp_path):
    """One run, of which each copy goes on; every fourth is killed once more at a random write."""
    assert wait_for_exit_code(start(place, "copied", *STEPS, copies=tmp_path / "at")) == DONE
    copies = sorted(tmp_path.glob("at/*"), key=lambda path: int(path.name))
    writes = list_writes_of_last_run(place)
    assert len(copies) == len(writes)
    rng, again = random.Random(0), 0
    for number, copy in enumerate(copies):
        if number % 4 == 0:
            again += wait_for_exit_code(start(copy, "copied", *STEPS, kill_at=rng.randrange(60))) == KILLED
        assert wait_for_exit_code(start(copy, "copied", *STEPS)) == DONE, writes[number]
        assert_same_end(place / "runs/whole", copy / "runs/copied")
        shutil.rmtree(copy)
    print(f"resumed at each of {len(copies)} writes, and killed {again} times more while going on")


@pytest.mark.slow
def test_run_killed_at_any_time_resumes_to_the_bit(place):
    """Kills at random times of a longer run, most of them in steps and validations."""
    longer = ("--steps", "60", "--validations", "12")
    began = time.perf_counter()
    finish(place, "longer", *longer, save_every=AT_VALIDATIONS)
    duration = time.perf_counter() - began
    rng, kills, runs = random.Random(1), 0, 0
    while kills < 60:
        name, runs, lives = f"time{runs}", runs + 1, 3
        while lives:
            process = start(place, name, *longer)
            process.join(rng.uniform(0, duration))
            process.kill()
            died = wait_for_exit_code(process) == KILLED
            kills, lives = kills + died, lives - 1 if died else 0
        finish(place, name, *longer)
        assert_same_end(place / "runs/longer", place / "runs" / name)
    print(f"{kills} kills at random times in {runs} runs of {duration:.1f} s")


@pytest.mark.slow
def test_smollm2_run_killed_at_any_time_resumes(tmp_path):
    """Whole programs this time, from the import of Python's modules on."""
    records = [
        record for record in load_dolly(from_hub=False).records if len(record.input + record.output) < 200
    ][:40]
    (tmp_path / "data").mkdir()
    for name, part in (("train", records[8:]), ("val", records[:8])):
        rows = [{"instruction": one.instruction, "input": one.input, "output": one.output} for one in part]
        (tmp_path / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = ["--batch-tokens", "256", "--micro-tokens", "256", "--max-tokens", "256", "--precision", "fp32"]
    options = ["--model", "smollm2-135m", "--steps", "4", "--validations", "2", *sizes]

    def begin(name: str) -> subprocess.Popen:
        begun = (tmp_path / "runs" / name / "settings.toml").is_file()
        words = ["--resume"] if begun else [*options, "--out", f"adapters/{name}"]
        command = [sys.executable, "-m", "loratune", "train", "--run", name, *words]
        with open(tmp_path / "output.txt", "a") as output:
            return subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=output)

    def live(name: str, seconds: float | None = None) -> bool:
        """Does the run come to its end, before it is killed after so many seconds?"""
        process = begin(name)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        assert process.wait() in (DONE, KILLED)
        return process.returncode == DONE

    began = time.perf_counter()
    assert live("whole")
    duration = time.perf_counter() - began
    rng, kills, runs = random.Random(2), 0, 0
    while kills < 6:
        name, runs = f"run{runs}", runs + 1
        kills += sum(not live(name, rng.uniform(0.1, 0.9) * duration) for _ in range(4))
        assert live(name)  # also one that is already at its end
        assert_same_end(tmp_path / "runs/whole", tmp_path / "runs" / name)
        duration *= 0.8  # the machine may have become less busy
    print(f"{kills} kills of SmolLM2-135M in {runs} runs")


def test_resuming_a_finished_run_changes_nothing(place, writes):
    finish(place, "counted")
    finish(place, "counted")
    assert_same_end(place / "runs/whole", place / "runs/counted")


def test_half_replaced_adapter_is_refused_until_the_run_is_resumed(place, writes, monkeypatch, capsys):
    """Another adapter's folder, of which a kill left the new weights with the old description."""
    monkeypatch.chdir(place)
    finish(place, "older", "--steps", "2", "--out", "adapters/shared")
    last = max(
        number
        for number, write in enumerate(writes)
        if re.search(r"rename adapters/.*/loratune\.json$", write)
    )
    assert (
        wait_for_exit_code(start(place, "newer", *STEPS, "--out", "adapters/shared", kill_at=last)) == KILLED
    )
    (place / "prompts.json").write_text('["Count to 3."]')
    compare = [
        "compare",
        "--adapter",
        "adapters/shared",
        "--prompts",
        "prompts.json",
        "--max-new-tokens",
        "2",
        "--threads",
        "1",
    ]
    assert main(compare) == 2
    assert (
        "of different adapters: training was killed while it saved one over the other"
        in capsys.readouterr().err
    )
    finish(place, "newer")
    assert main(compare) == 0
    shared, whole = (place / "adapters" / name / "adapter_model.safetensors" for name in ("shared", "whole"))
    assert shared.read_bytes() == whole.read_bytes()
    assert not [name for name in os.listdir(place / "adapters") if name.endswith(".tmp")]
