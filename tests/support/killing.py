"""`loratune train` in processes of its own that are killed: at a chosen write, or at a chosen time.

Each process is forked from one that has imported everything (Python's "forkserver"), so that it begins at
once.
"""

import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path

from safetensors.torch import load_file

from loratune.training.checkpoint import find_damage
from loratune.training.run_folder import CHECKPOINTS_TO_KEEP, RunFolder
from support.training_runs import BASE

# What changes a file system, as Python's own audit events call it
# (docs.python.org/3/library/audit_events.html).
WRITES = ("open", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate")
PRELOADED = (
    "loratune.commands.train",
    "transformers.models.llama.modeling_llama",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
)
OPTIONS = [*BASE, "--dropout", "0.1"]
KILLED, DONE = -signal.SIGKILL, 0
AT_EACH_STEP, AT_VALIDATIONS = 0.0, math.inf  # seconds between checkpoints

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(list(PRELOADED))


def start(
    place: Path,
    name: str,
    *options: str,
    kill_at: int | None = None,
    copies: Path | None = None,
    save_every: float = AT_EACH_STEP,
) -> multiprocessing.Process:
    """The run `name`, which goes on if it was begun. It kills itself just before its write number `kill_at`,
    from 0.

    Before each write, what a kill there would leave on the disk is copied to `copies`/0, 1, 2 and so on.
    """
    begun = (place / "runs" / name / "settings.toml").is_file()
    words = [
        "train",
        "--run",
        name,
        *(["--resume"] if begun else [*OPTIONS, "--out", f"adapters/{name}", *options]),
    ]
    process = processes.Process(target=train, args=(place, name, words, kill_at, copies, save_every))
    process.start()
    return process


def wait_for_exit_code(process: multiprocessing.Process) -> int:
    process.join()
    return process.exitcode


def finish(place: Path, name: str, *options: str, save_every: float = AT_EACH_STEP) -> None:
    assert wait_for_exit_code(start(place, name, *options, save_every=save_every)) == DONE


def train(
    place: Path, name: str, words: list[str], kill_at: int | None, copies: Path | None, save_every: float
) -> None:
    """Train, in the new process."""
    from loratune.cli.main import main
    from loratune.training import loop

    loop.SAVE_INTERVAL_SECONDS = save_every
    os.chdir(place)
    os.environ |= {"LORATUNE_CACHE": str(place.with_name("cache")), "HF_HUB_OFFLINE": "1"}
    silent = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    writes = []

    def watch(event: str, arguments: tuple) -> None:
        if event in WRITES and is_write(event, arguments, place):
            if kill_at == len(writes):
                os.kill(os.getpid(), signal.SIGKILL)
            if copies:
                copy_run(place, name, copies / str(len(writes)))
            writes.append(f"{event} {arguments[0]}")

    sys.addaudithook(watch)
    code = main(words)
    Path(place.with_name("writes.json")).write_text(json.dumps(writes))
    os._exit(code)


def copy_run(place: Path, name: str, to: Path) -> None:
    """Copy the run `name` and its adapter as they are now, so that the copy can be resumed."""
    for folder in ("runs", "adapters"):
        (to / folder).mkdir(parents=True)
        for path in place.glob(f"{folder}/*{name}*"):
            if path.is_dir():
                shutil.copytree(path, to / folder / path.name, symlinks=True)
            else:  # a lock
                shutil.copy2(path, to / folder / path.name)
    for given in ("base", "data"):
        (to / given).symlink_to(place / given)


def is_write(event: str, arguments: tuple, place: Path) -> bool:
    """Return whether an audit event writes to the run's or the adapter's folders."""
    path = arguments[1] if event in ("os.symlink", "os.link") else arguments[0]
    if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return False
    return not isinstance(path, int) and os.path.abspath(os.fsdecode(path)).startswith(f"{place}{os.sep}")


def list_writes_of_last_run(place: Path) -> list[str]:
    return json.loads(place.with_name("writes.json").read_text())


def assert_same_end(whole: Path, killed: Path) -> None:
    """The same adapter to the last bit, the same log, and nothing left lying about; both are folders in a
    place's `runs`.
    """
    place = killed.parent.parent
    one, other = (run.parent.parent / "adapters" / run.name for run in (whole, killed))
    assert (one / "adapter_model.safetensors").read_bytes() == (
        other / "adapter_model.safetensors"
    ).read_bytes()
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())
    assert read_log_rows(whole) == read_log_rows(killed)
    run = RunFolder(killed)
    assert len(run.list_checkpoints()) <= CHECKPOINTS_TO_KEEP + 1 and all(
        find_damage(checkpoint) is None for checkpoint in run.list_checkpoints()
    )
    assert json.loads((run.folder / "summary.json").read_text())["finished"]
    best = load_file(run.find_best() / "adapter_model.safetensors")
    assert all(
        best[name].equal(tensor) for name, tensor in load_file(other / "adapter_model.safetensors").items()
    )
    leftovers = [
        path
        for folder in (run.folder, other.parent)
        for path in folder.rglob("*")
        if path.name.endswith(".tmp")
    ]
    assert not leftovers
    assert "damaged" not in (place / "output.txt").read_text()


def read_log_rows(run: Path) -> list[tuple]:
    """Return the log's rows without the values that depend on the clock."""
    rows = RunFolder(run).read_log()
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == list(range(1, len(steps) + 1))
    return [
        tuple(row.get(key) for key in ("step", "loss", "val_nll", "lr", "grad_norm", "tokens"))
        for row in rows
    ]
