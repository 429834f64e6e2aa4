"""Files are written beside, synced and renamed: a reader sees the old file or the new one, never half of
one.
"""

import errno
import fcntl
import glob
import json
import os
import re
import shutil
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from loratune.errors import FileError, UserError
from loratune.system.signals import delayed_signals


@contextmanager
def replace_atomically(path: Path):
    """Yield a temporary path beside `path`; on success it is synced and takes `path`'s place, on failure it
    is removed.

    Raises FileError when the disk is full or the folder cannot be written.
    """
    with temporary_file(path) as beside:
        yield beside
        sync(beside)
        os.replace(beside, path)
        sync(path.parent)


@contextmanager
def temporary_file(path: Path):
    """Yield a temporary path in the folder of `path`, which is made; what is there at the end is removed."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with translate_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield beside
    finally:
        with suppress(OSError):
            beside.unlink()


def sync(path: Path) -> None:
    """Make a file's content, or a folder's list of names, survive a power cut."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError:
        if not path.is_dir():  # some file systems cannot do it with a folder, and that is no reason to stop
            raise
    finally:
        os.close(number)


@contextmanager
def fill_folder_atomically(folder: Path):
    """Yield an empty folder beside `folder`. On success its files take their places in `folder`, whose others
    stay.

    On failure `folder` is as it was. Raises FileError when the disk is full or the folder cannot be written.
    """
    folder = Path(folder)
    with temporary_folder(folder) as beside:
        yield beside
        folder.mkdir(exist_ok=True)
        with delayed_signals():
            for file in sorted(beside.iterdir()):
                os.replace(file, folder / file.name)
        sync(folder)


@contextmanager
def create_folder_atomically(folder: Path):
    """Yield an empty folder beside `folder`, which becomes `folder` on success: that is there whole or not at
    all.
    """
    folder = Path(folder)
    with temporary_folder(folder) as beside:
        yield beside
        sync(beside)
        os.replace(beside, folder)
        sync(folder.parent)


@contextmanager
def temporary_folder(folder: Path):
    """Yield an empty folder beside `folder`; afterwards it is gone, as are those of processes that were
    killed.
    """
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    remove_leftovers(folder)
    try:
        with translate_os_errors(folder):
            beside.mkdir(parents=True)
            yield beside
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what writers that were killed have left beside `folder`."""
    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):
        writer = leftover.name.split(".")[-2]
        # Process ids are reused after a restart: no other process can be at work under our own.
        if writer.isdecimal() and (int(writer) == os.getpid() or not process_exists(int(writer))):
            shutil.rmtree(leftover, ignore_errors=True)


def process_exists(number: int) -> bool:
    import psutil

    return psutil.pid_exists(number)


def remove_folder(folder: Path) -> None:
    """Remove a folder whole or not at all: what a kill leaves of it has another name, which ends in .tmp."""
    gone = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    os.replace(folder, gone)
    shutil.rmtree(gone)


def write_all_atomically(texts: dict[Path, str]) -> None:
    """Write all files or none: each is on the disk before the first is renamed, in the order given."""
    with ExitStack() as stack:
        written = {}
        for path, text in texts.items():
            written[path] = stack.enter_context(temporary_file(path))
            written[path].write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
            sync(written[path])
        with delayed_signals():
            for path, beside in written.items():
                os.replace(beside, path)
                sync(path.parent)


@contextmanager
def file_lock(path: Path, remedy: str):
    """Keep other processes from `path`, a file or folder that need not exist, by a file beside it:
    .NAME.lock.

    The kernel releases the lock when this process ends, by SIGKILL too, so it never outlives its holder. On a
    file system without locks there is none. Raises UserError, which names the holder's process id, where
    another process has the lock.
    """
    path = Path(path)
    lock = path.with_name(f".{path.name}.lock")
    with translate_os_errors(path):
        file = acquire_lock(lock, path, remedy)
    with file:
        try:
            with translate_os_errors(path):
                lock.write_text(str(os.getpid()))
            yield
        finally:
            with suppress(OSError):  # while it is held: who opened it before finds it gone, and makes another
                lock.unlink()


def acquire_lock(lock: Path, path: Path, remedy: str) -> IO[str]:
    """Return the lock file, which is locked until it is closed."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        lock.touch()
        with suppress(FileNotFoundError):  # its holder has just ended, and removed it
            file = open(lock)  # noqa: SIM115 - the caller closes it
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{path}: process {file.read() or '(only just begun)'} is writing there; {remedy}"
                ) from None
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
                    raise
            if os.path.samestat(lock.stat(), os.fstat(file.fileno())):
                return file
            file.close()


def refuse_unwritable(path: Path, folder: bool = False) -> None:
    """Check before any work is done that `path`, a file or a folder, can be written. Raises UserError if
    not.
    """
    path = Path(path)
    if not path.name:
        raise UserError(f"name a {'folder' if folder else 'file'}", setting="out", value=path)
    if path.exists() and path.is_dir() != folder:
        there, needed = ("file", "folder") if folder else ("folder", "file")
        raise UserError(f"this is a {there}", setting="out", value=path, remedy=f"a {needed} is needed")
    nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
    if nearest != path and not nearest.is_dir():
        raise UserError(
            f"{nearest} is a file, not a folder", setting="out", value=path, remedy="choose another path"
        )
    if not os.access(nearest, os.W_OK):
        raise UserError(
            "permission denied", setting="out", value=path, remedy="choose a place that you may write to"
        )


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all. Raises FileError where it cannot be written."""
    # A file name may hold bytes that are not text; JSON has the same escape for them (\udcff).
    with (
        replace_atomically(path) as beside,
        open(beside, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
    ):
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    write_text(path, format_json(value))


def format_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


@contextmanager
def translate_os_errors(path: Path):
    """Turn errors of the file system that the user can fix into FileErrors."""
    try:
        yield
    except Exception as error:
        if (known := convert_os_error(error, path)) is error:
            raise
        raise known from error


def convert_os_error(error: Exception, path: Path) -> Exception:
    """Return the FileError for an error of the file system that the user can fix, any other error as it is.

    safetensors and tokenizers, written in Rust, give the error's number in their message alone.
    """
    if isinstance(error, OSError) and error.errno:
        number = error.errno
    else:
        match = re.search(r"\(os error (\d+)\)|code: (\d+)", str(error))
        number = int(match[1] or match[2]) if match else None
    remedies = {
        errno.ENOSPC: "no room left on the disk; free some space, then try again",
        errno.EDQUOT: "the disk quota is used up; free some space, then try again",
        errno.EFBIG: "the file is larger than the system allows (see `ulimit -f`); raise that limit, then "
        "try again",
        errno.EACCES: "permission denied; choose a file or folder that you may use",
        errno.EPERM: "permission denied; choose a file or folder that you may use",
        errno.EROFS: "the file system is read-only; choose another folder",
        errno.ENOENT: "there is no such folder, and it cannot be made; choose another path",
        errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
        errno.ENOTDIR: "part of this path is a file, not a folder; choose another path",
        errno.EISDIR: "this is a folder; a file is needed",
        errno.ELOOP: "its links lead in a circle; choose another path",
        errno.EEXIST: "a file is in the way; choose another path",
    }
    remedy = remedies.get(number) if number else None
    return FileError(f"{path}: {remedy}") if remedy else error
