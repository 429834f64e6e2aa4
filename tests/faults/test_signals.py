"""Signals: the first saves the run and says how to resume it, the second ends it immediately."""

import fcntl
import os
import signal
import subprocess
import sys
import termios

import pytest

from loratune.api import train as training
from loratune.cli.main import main
from loratune.models.tokenizer import Tokenizer
from loratune.system.atomic import write_all_atomically
from loratune.system.signals import STOP_SIGNALS, delayed_signals
from loratune.training import loop
from loratune.training.run_folder import RunFolder
from loratune.training.setup import defaults, inputs
from support.faults import read_contents
from support.training_runs import TRAIN, are_same_tensors, load_adapter_tensors, train

ONE = ["--steps", "3", "--validations", "2", "--run", "one", "--out", "tuned"]
names = [signal.Signals(number).name for number in STOP_SIGNALS]


COMMANDS = (
    ["prepare", "--data", "mine.jsonl", "--model", "base"],
    ["evaluate", "--adapter", "adapter"],
    ["compare", "--adapter", "adapter"],
)


def send_signals_during(times: int, number: int, original):
    """`original`, which is called while as many signals come."""
    sent = []

    def function(*arguments, **options):
        if not sent:
            sent.append(number)
            for _ in range(times):
                os.kill(os.getpid(), number)
        return original(*arguments, **options)

    return function


# In which function the signal comes.
MOMENTS = {
    "a step": (loop, "train_step"),
    "the first validation": (loop, "compute_validation_loss"),
    "a checkpoint": (RunFolder, "save"),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", STOP_SIGNALS, ids=names)
def test_first_signal_saves_and_says_how_to_resume(place, whole, capsys, monkeypatch, moment, number):
    owner, name = MOMENTS[moment]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, send_signals_during(1, number, getattr(owner, name)))
        assert train(*ONE) == 1
    assert "nothing is lost. Go on with: loratune train --run one --resume" in capsys.readouterr().out
    assert not (place / "tuned").exists()
    assert main(["train", "--run", "one", "--resume"]) == 0
    assert are_same_tensors(load_adapter_tensors(place / "tuned"), whole)


@pytest.mark.parametrize("moment", MOMENTS)
def test_second_signal_ends_immediately_and_keeps_the_newest_checkpoint(
    place, whole, capsys, monkeypatch, moment
):
    owner, name = MOMENTS[moment]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, send_signals_during(2, signal.SIGTERM, getattr(owner, name)))
        assert train(*ONE) == 128 + signal.SIGTERM
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert not list(place.rglob("*.tmp")) and not list(place.rglob("*.lock"))
    assert main(["train", "--run", "one", "--resume"]) == 0
    assert are_same_tensors(load_adapter_tensors(place / "tuned"), whole)


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=names)
@pytest.mark.parametrize(
    ("where", "name"),
    [
        *[(inputs, "load_model"), (inputs, "read_data"), (defaults, "run_autotune")],
        *[(training, "plot_losses"), (training, "render_model_card"), (training, "build_result")],
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_signals_before_the_first_and_after_the_last_step(
    place, whole, capsys, monkeypatch, where, name, number
):
    """Once is enough there: nothing runs that could be finished."""
    with monkeypatch.context() as patch:
        patch.setattr(where, name, send_signals_during(1, number, getattr(where, name)))
        assert train(*ONE) == 128 + number
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert not list(place.rglob("*.tmp")) and not list(place.rglob("*.lock"))
    begun = (place / "runs" / "one").exists()
    assert main(["train", "--run", "one", "--resume"] if begun else [*TRAIN, *ONE]) == 0
    assert are_same_tensors(load_adapter_tensors(place / "tuned"), whole)


def test_signal_while_writing_the_adapter_keeps_the_old_one(place, capsys, monkeypatch):
    before = read_contents(place / "adapter")
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "save", send_signals_during(1, signal.SIGINT, Tokenizer.save))
        assert train(*ONE, "--out", "adapter") == 130
    assert read_contents(place / "adapter") == before
    assert main(["train", "--run", "one", "--resume"]) == 0
    assert read_contents(place / "adapter") != before


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
@pytest.mark.parametrize("number", STOP_SIGNALS, ids=names)
def test_signals_end_other_commands_without_leftovers(place, capsys, monkeypatch, words, number):
    before = read_contents(place)
    monkeypatch.setattr(Tokenizer, "encode_batch", send_signals_during(1, number, Tokenizer.encode_batch))
    monkeypatch.setattr(Tokenizer, "encode_prompts", send_signals_during(1, number, Tokenizer.encode_prompts))
    assert main(words) == 128 + number
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert read_contents(place) == before


def test_signals_do_not_separate_files_written_together(tmp_path, monkeypatch):
    """The signal comes between the first and the second of them."""
    monkeypatch.setattr(os, "replace", send_signals_during(1, signal.SIGINT, os.replace))
    with pytest.raises(KeyboardInterrupt):
        write_all_atomically({tmp_path / "a": "1", tmp_path / "b": "2"})
    assert read_contents(tmp_path) == {"a": b"1", "b": b"2"}


def test_delayed_signals_are_delivered_afterwards():
    reached = []
    with pytest.raises(KeyboardInterrupt), delayed_signals():
        os.kill(os.getpid(), signal.SIGINT)
        reached.append(True)
    assert reached


def test_ignored_signal_stays_ignored(place, whole, monkeypatch):
    """`nohup loratune train`: the terminal may be closed."""
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(loop, "train_step", send_signals_during(2, signal.SIGHUP, loop.train_step))
        assert train(*ONE) == 0
    finally:
        signal.signal(signal.SIGHUP, old)
    assert are_same_tensors(load_adapter_tensors(place / "tuned"), whole)


def test_signal_handlers_are_restored(place):
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    assert train(*ONE, "--dry-run") == 0
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


@pytest.mark.slow
def test_closed_terminal_saves_and_stops(place, whole):
    """Its program gets SIGHUP, and can print nothing any more; it saves all the same."""
    parent, child = os.openpty()
    command = [sys.executable, "-m", "loratune", *TRAIN, "--steps", "100000", "--run", "long"]
    program = subprocess.Popen(
        command, stdin=child, stdout=child, stderr=child, start_new_session=True, preexec_fn=take_terminal
    )
    os.close(child)
    seen = b""
    while b"  val " not in seen:  # steps are being taken
        seen += os.read(parent, 1000)
    os.close(parent)
    assert program.wait(timeout=120) == 1
    assert list((place / "runs" / "long" / "checkpoints").glob("step-*"))


def take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
