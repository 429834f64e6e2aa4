"""Atomic files and folders: written beside, synced and renamed, so that readers never see half of one."""

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
    """Yield a temporary path that replaces `path` on success and is removed on failure.

    Raises:
        FileError: the disk is full, or the folder is not writable.
    """
    with temporary_file(path) as beside:
        yield beside
        sync(beside)
        os.replace(beside, path)
        sync(path.parent)


@contextmanager
def temporary_file(path: Path):
    """Yield a temporary path in the folder of `path`, which is created; a file left there is removed."""
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
    """Flush a file's content, or a folder's list of names, to the disk, so that it survives a power cut."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError:
        if not path.is_dir():  # some file systems cannot sync a folder, which is no reason to stop
            raise
    finally:
        os.close(number)


@contextmanager
def fill_folder_atomically(folder: Path):
    """Yield an empty folder whose files are moved to `folder` on success; other files there stay.

    On failure `folder` is unchanged.

    Raises:
        FileError: the disk is full, or the folder is not writable.
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
    """Yield an empty folder that is renamed to `folder` on success, so that it is complete or absent."""
    folder = Path(folder)
    with temporary_folder(folder) as beside:
        yield beside
        sync(beside)
        os.replace(beside, folder)
        sync(folder.parent)


@contextmanager
def temporary_folder(folder: Path):
    """Yield an empty folder beside `folder`, removed afterwards, as are those of killed processes."""
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    remove_leftovers(folder)
    try:
        with translate_os_errors(folder):
            beside.mkdir(parents=True)
            yield beside
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary folders that killed processes have left beside `folder`."""
    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):
        writer = leftover.name.split(".")[-2]
        # Process ids are reused after a restart; a folder with our own id is not in use.
        if writer.isdecimal() and (int(writer) == os.getpid() or not process_exists(int(writer))):
            shutil.rmtree(leftover, ignore_errors=True)


def process_exists(number: int) -> bool:
    import psutil

    return psutil.pid_exists(number)


def remove_folder(folder: Path) -> None:
    """Remove a folder completely or not at all: what a kill leaves has another name, which ends in .tmp."""
    renamed = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    os.replace(folder, renamed)
    shutil.rmtree(renamed)


def write_all_atomically(texts: dict[Path, str]) -> None:
    """Write all files or none: all are on the disk before they are renamed, in the order given."""
    with ExitStack() as stack:
        temporary_paths = {}
        for path, text in texts.items():
            temporary_paths[path] = beside = stack.enter_context(temporary_file(path))
            beside.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
            sync(beside)
        with delayed_signals():
            for path, beside in temporary_paths.items():
                os.replace(beside, path)
                sync(path.parent)


@contextmanager
def file_lock(path: Path, remedy: str):
    """Lock `path`, a file or folder that need not exist, against other processes, by a file .NAME.lock.

    The kernel releases the lock when this process ends, even by SIGKILL, so it never outlives its holder. On
    a file system without locks nothing is locked.

    Raises:
        UserError: another process holds the lock; the message names its id.
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
            with suppress(OSError):  # while it is held; a process that opened it notices
                lock.unlink()


def acquire_lock(lock: Path, path: Path, remedy: str) -> IO[str]:
    """Open and lock the lock file; the lock is held until the file is closed."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        lock.touch()
        with suppress(FileNotFoundError):  # its holder has just finished and removed it
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
    """Raise UserError unless `path`, a file or a folder, can be written; called before any work is done."""
    path = Path(path)
    if not path.name:
        raise UserError(f"name a {'folder' if folder else 'file'}", setting="out", value=path)
    if path.exists() and path.is_dir() != folder:
        actual, needed = ("file", "folder") if folder else ("folder", "file")
        raise UserError(f"this is a {actual}", setting="out", value=path, remedy=f"a {needed} is needed")
    nearest = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if nearest != path and not nearest.is_dir():
        raise UserError(
            f"{nearest} is a file, not a folder", setting="out", value=path, remedy="choose another path"
        )
    if not os.access(nearest, os.W_OK):
        raise UserError(
            "permission denied", setting="out", value=path, remedy="choose a place that you may write to"
        )


def write_text(path: Path, text: str) -> None:
    """Write a text file, completely or not at all. Raises FileError if it cannot be written."""
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
    """Convert file system errors that the user can fix to FileErrors."""
    try:
        yield
    except Exception as error:
        if (known := convert_os_error(error, path)) is error:
            raise
        raise known from error


def convert_os_error(error: Exception, path: Path) -> Exception:
    """Convert a file system error that the user can fix to a FileError; return any other error unchanged.

    safetensors and tokenizers, which are written in Rust, give the error number only in the message.
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
