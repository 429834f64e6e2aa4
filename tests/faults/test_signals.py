"""Signals: once, and the run saves and says how it goes on; twice, and it ends at once. Never a traceback."""

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
from loratune.training import loop, setup
from loratune.training.run_folder import RunFolder
from support.faults import content
from support.training_runs import TRAIN, adapter, same, train

ONE = ["--steps", "3", "--validations", "2", "--run", "one", "--out", "tuned"]
names = [signal.Signals(number).name for number in STOP_SIGNALS]


COMMANDS = (
    ["prepare", "--data", "mine.jsonl", "--model", "base"],
    ["evaluate", "--adapter", "adapter"],
    ["compare", "--adapter", "adapter"],
)


def sending(times: int, number: int, original):
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
def test_once_saves_and_says_how_to_go_on(place, whole, capsys, monkeypatch, moment, number):
    owner, name = MOMENTS[moment]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, sending(1, number, getattr(owner, name)))
        assert train(*ONE) == 1
    assert "nothing is lost. Go on with: loratune train --run one --resume" in capsys.readouterr().out
    assert not (place / "tuned").exists()
    assert main(["train", "--run", "one", "--resume"]) == 0
    assert same(adapter(place / "tuned"), whole)


@pytest.mark.parametrize("moment", MOMENTS)
def test_twice_ends_at_once_and_keeps_the_newest_checkpoint(place, whole, capsys, monkeypatch, moment):
    owner, name = MOMENTS[moment]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, sending(2, signal.SIGTERM, getattr(owner, name)))
        assert train(*ONE) == 128 + signal.SIGTERM
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert not list(place.rglob("*.tmp")) and not list(place.rglob("*.lock"))
    assert main(["train", "--run", "one", "--resume"]) == 0
    assert same(adapter(place / "tuned"), whole)


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=names)
@pytest.mark.parametrize(
    ("where", "name"),
    [
        *[(setup, "load_model"), (setup, "read_data"), (setup, "run_autotune")],
        *[(training, "plot_losses"), (training, "render_model_card"), (training, "build_result")],
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_before_the_first_step_and_after_the_last(place, whole, capsys, monkeypatch, where, name, number):
    """Once is enough there: nothing runs that could be finished."""
    with monkeypatch.context() as patch:
        patch.setattr(where, name, sending(1, number, getattr(where, name)))
        assert train(*ONE) == 128 + number
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert not list(place.rglob("*.tmp")) and not list(place.rglob("*.lock"))
    begun = (place / "runs" / "one").exists()
    assert main(["train", "--run", "one", "--resume"] if begun else [*TRAIN, *ONE]) == 0
    assert same(adapter(place / "tuned"), whole)


def test_while_the_adapter_is_written_the_old_one_stays(place, capsys, monkeypatch):
    before = content(place / "adapter")
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "save", sending(1, signal.SIGINT, Tokenizer.save))
        assert train(*ONE, "--out", "adapter") == 130
    assert content(place / "adapter") == before
    assert main(["train", "--run", "one", "--resume"]) == 0
    assert content(place / "adapter") != before


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
@pytest.mark.parametrize("number", STOP_SIGNALS, ids=names)
def test_other_commands_end_without_a_trace(place, capsys, monkeypatch, words, number):
    before = content(place)
    monkeypatch.setattr(Tokenizer, "encode_batch", sending(1, number, Tokenizer.encode_batch))
    monkeypatch.setattr(Tokenizer, "encode_prompts", sending(1, number, Tokenizer.encode_prompts))
    assert main(words) == 128 + number
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert content(place) == before


def test_files_that_belong_together_take_their_places_together(tmp_path, monkeypatch):
    """The signal comes between the first and the second of them."""
    monkeypatch.setattr(os, "replace", sending(1, signal.SIGINT, os.replace))
    with pytest.raises(KeyboardInterrupt):
        write_all_atomically({tmp_path / "a": "1", tmp_path / "b": "2"})
    assert content(tmp_path) == {"a": b"1", "b": b"2"}


def test_what_is_held_back_comes_afterwards():
    reached = []
    with pytest.raises(KeyboardInterrupt), delayed_signals():
        os.kill(os.getpid(), signal.SIGINT)
        reached.append(True)
    assert reached


def test_a_signal_that_is_ignored_stays_ignored(place, whole, monkeypatch):
    """`nohup loratune train`: the terminal may be closed."""
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(loop, "train_step", sending(2, signal.SIGHUP, loop.train_step))
        assert train(*ONE) == 0
    finally:
        signal.signal(signal.SIGHUP, old)
    assert same(adapter(place / "tuned"), whole)


def test_handlers_are_put_back(place):
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    assert train(*ONE, "--dry-run") == 0
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


@pytest.mark.slow
def test_a_terminal_that_is_closed(place, whole):
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
