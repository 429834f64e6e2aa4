"""Helpers of the fault tests: commands, file contents, and a disk that fills up on demand."""

import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from loratune.cli.main import main
from loratune.system.hardware import OtherPrograms
from support.training_runs import TRAIN

RUN = [*TRAIN, "--steps", "3", "--validations", "2"]


def enter_copy(place: Path, template: Path, cache: Path, monkeypatch) -> Path:
    """Copy the template to `place` and make that the working directory."""
    shutil.copytree(template, place, dirs_exist_ok=True)
    monkeypatch.chdir(place)
    monkeypatch.setenv("LORATUNE_CACHE", str(cache))
    monkeypatch.setattr(
        OtherPrograms, "are_busy", lambda *_: False
    )  # what was timed once is good enough here
    return place


def assert_refused(capsys, *words: str) -> str:
    """Run a command that must end with code 2, and return its error message."""
    capsys.readouterr()
    assert main([*words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
    return error


def read_contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def start_process(*words: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "loratune", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


class SmallDisk:
    """A file system in memory. It can be filled to the last byte, at once or just before a file is opened for
    writing.
    """

    def __init__(self, path: Path):
        self.path = path
        self.ballast = path / ".ballast"
        self.opened: list[str] = []
        self.fill_at: int | str | None = None
        watchers.append(self)

    def fill(self) -> None:
        room = os.statvfs(self.path)
        with open(self.ballast, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize)

    def free(self) -> None:
        self.fill_at = None
        self.ballast.unlink(missing_ok=True)

    @contextmanager
    def fill_before_opening(self, file: int | str | None):
        """The disk fills up before file number `file`, from 0, or the first whose path has this in it, is
        opened; None: never.
        """
        self.opened, self.fill_at = [], file
        try:
            yield
        finally:
            self.free()

    def watch_before(self, save_file):
        """Wrap `save_file(tensors, path)`, which Python does not see, to call `watch` before it."""

        def save(tensors, path, **options):
            self.watch(path)
            save_file(tensors, path, **options)

        return save

    def watch(self, name: str) -> None:
        path = Path(os.path.abspath(name))
        if path == self.ballast or self.path not in path.parents:
            return
        self.opened.append(str(path.relative_to(self.path)))
        if self.fill_at == len(self.opened) - 1 or (
            isinstance(self.fill_at, str) and re.search(self.fill_at, self.opened[-1])
        ):
            self.fill_at = None
            self.fill()


watchers: list[SmallDisk] = []


def notice(event: str, arguments: tuple) -> None:
    """Watch Python's audit events (docs.python.org/3/library/audit_events.html)."""
    if event == "open" and watchers and isinstance(arguments[0], str | bytes | os.PathLike):
        flags = arguments[2]
        if flags & os.O_CREAT:
            watchers[-1].watch(os.fsdecode(arguments[0]))


sys.addaudithook(notice)
