"""Out of memory: smaller micro-batches with the same result, or a clear error."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loratune.cli.main import main
from loratune.data.example import Example
from loratune.data.packing import pack_best_fit
from loratune.errors import UserError
from loratune.system.memory import is_out_of_memory
from loratune.training import loop, step
from loratune.training.checkpoint import TrainingState
from loratune.training.loop import halve_micro_tokens
from loratune.training.setup import defaults, inputs
from support.faults import assert_refused
from support.plans import PLAN
from support.training_runs import TRAIN, are_same_tensors, load_adapter_tensors, train

ONE = ["--steps", "3", "--validations", "2", "--dropout", "0.1", "--run", "one", "--out", "tuned"]
FAILURES = (
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 9 bytes."
    ),
    RuntimeError("std::bad_alloc"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
)


def memory_for(tokens: int, monkeypatch, failure: Exception = FAILURES[1]) -> list[int]:
    """Let so many tokens at once fit into the memory; returns what was computed at once.

    The last micro-batch of a step fails: by then the others have left their gradients.
    """
    original, computed = step.accumulate_gradients, []

    def add_gradients(decoder, micro_batches, objective, *, weight):
        computed.append(max(len(batch.input_ids) for batch in micro_batches))
        loss = original(decoder, micro_batches, objective, weight=weight)
        if computed[-1] > tokens:
            raise failure
        return loss

    monkeypatch.setattr(step, "accumulate_gradients", add_gradients)
    return computed


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: f"{type(failure).__name__}: {failure}"[:40])
def test_step_is_repeated_with_half_the_micro_batch(place, capsys, monkeypatch, failure):
    """The same bits as of a run that computed as few tokens at once from the beginning."""
    with monkeypatch.context() as patch:
        computed = memory_for(250, patch, failure)
        assert train(*ONE) == 0
    output = capsys.readouterr().out
    halved = [size for size in computed if size > 250]
    assert len(halved) == output.count("not enough memory for") == 1
    assert (
        f"not enough memory for a micro-batch of {halved[0]:,} tokens; from here on {halved[0] // 2:,}"
        in " ".join(output.split())
    )
    small = ["--micro-tokens", str(halved[0] // 2), "--max-tokens", "152", "--run", "small", "--out", "small"]
    assert main([*TRAIN, *ONE, *small]) == 0
    assert are_same_tensors(load_adapter_tensors(place / "tuned"), load_adapter_tensors(place / "small"))


def test_resumed_run_starts_with_the_reduced_micro_batch(place, monkeypatch):
    """It fails once, and the run goes on after a stop."""
    with monkeypatch.context() as patch:
        memory_for(250, patch)
        original, interrupted = loop.take_step, []

        def take_step(*arguments, **options):
            result = original(*arguments, **options)
            interrupted.append(os.kill(os.getpid(), signal.SIGINT))
            return result

        patch.setattr(loop, "take_step", take_step)
        assert train(*ONE) == 1
        assert len(interrupted) == 1
    kept = json.loads((place / "runs/one/checkpoints/step-000001/state.json").read_text())
    with monkeypatch.context() as patch:
        computed = memory_for(250, patch)
        assert main(["train", "--run", "one", "--resume"]) == 0
        assert max(computed) <= 250 and len(computed) == 2
    small = [
        "--micro-tokens",
        str(kept["micro_tokens"]),
        "--max-tokens",
        "152",
        "--run",
        "small",
        "--out",
        "small",
    ]
    assert main([*TRAIN, *ONE, *small]) == 0
    assert are_same_tensors(load_adapter_tensors(place / "tuned"), load_adapter_tensors(place / "small"))


def test_single_row_that_does_not_fit_is_reported(place, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        memory_for(50, patch)
        error = assert_refused(capsys, *TRAIN, *ONE)
    assert re.search(r"step 1: not enough memory for a row of \d+ tokens, computed alone", error)
    assert "--low-memory" in error and "--max-tokens (now 300)" in error
    assert not (place / "tuned").exists()
    assert main(["train", "--run", "one", "--resume"]) == 0  # once other programs are closed


@pytest.mark.parametrize(
    "moment",
    [
        (loop, "compute_validation_loss"),
        (inputs, "load_model"),
        (inputs, "read_data"),
        (defaults, "run_autotune"),
    ],
    ids=lambda moment: moment[1],
)
def test_out_of_memory_elsewhere_is_reported_with_a_remedy(place, capsys, monkeypatch, moment):
    def fail(*_, **__):
        raise FAILURES[1]

    monkeypatch.setattr(*moment, fail)
    assert "not enough memory; close other programs" in assert_refused(capsys, *TRAIN, *ONE)


def test_other_errors_are_not_out_of_memory():
    assert not any(
        map(is_out_of_memory, (RuntimeError("shapes differ"), ValueError("out of memory"), OSError()))
    )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's address space")
def test_memory_refused_by_the_system_is_handled(place):
    """A real limit, so that a real allocation fails, in the middle of a step."""
    rows = [
        json.dumps({"instruction": "Say it.", "input": "", "output": "so " * 90 + str(n)}) + "\n"
        for n in range(60)
    ]
    (place / "data" / "train.jsonl").write_text("".join(rows))
    many = [
        "--batch-tokens",
        "16384",
        "--micro-tokens",
        "16384",
        "--steps",
        "1",
        "--run",
        "one",
        "--out",
        "tuned",
    ]
    command = [sys.executable, Path(__file__).parents[1] / "support" / "limited.py", *TRAIN, *many]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and "not enough memory for" in result.stdout
    assert all(matrix.isfinite().all() for matrix in load_adapter_tensors(place / "tuned").values())


@given(st.lists(st.integers(1, 300), min_size=1, max_size=8), st.integers(1, 400))
def test_micro_batches_shrink_until_each_row_is_alone(lengths, size):
    """Otherwise the same would be tried for ever, or the step left out; rows may be longer than the size."""
    job = SimpleNamespace(examples=[Example([], [1] * (length + 1), "", "") for length in lengths], plan=PLAN)
    while any(len(group) > 1 for group in cut(lengths, size)):
        state = TrainingState()
        assert "not enough memory" in halve_micro_tokens(job, cut(lengths, size), state).message
        assert 0 < state.micro_tokens < size
        size = state.micro_tokens
    with pytest.raises(UserError, match=f"a row of {max(lengths)} tokens"):
        halve_micro_tokens(job, cut(lengths, size), TrainingState())


def cut(lengths: list[int], size: int) -> list[list[int]]:
    return pack_best_fit(lengths, range(len(lengths)), size)
