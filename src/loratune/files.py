"""Files are written beside, synced and renamed: a reader sees the old file or the new one, never half of one."""

import errno
import json
import os
from contextlib import contextmanager
from pathlib import Path

from loratune.errors import UserError


@contextmanager
def replacing(path: Path):
    """Yield a temporary path beside `path`; on success it is synced and takes `path`'s place, on failure it is removed.

    Raises UserError when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise explained(error, path) from error
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as beside, open(beside, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def write_json(path: Path, value) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path):
    """Raises UserError, naming the file and the line, when it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except OSError as error:
        raise explained(error, path) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}") from error


def explained(error: OSError, path: Path) -> Exception:
    """The UserError for an OSError that the user can mend; any other error as it is."""
    remedies = {
        errno.ENOSPC: "no room left on the disk; free some space and run the command again",
        errno.EDQUOT: "the disk quota is used up; free some space and run the command again",
        errno.EACCES: "permission denied; choose a file or folder that you may use",
        errno.EPERM: "permission denied; choose a file or folder that you may use",
        errno.EROFS: "the file system is read-only; choose another folder",
        errno.ENOTDIR: "part of this path is a file, not a folder; choose another path",
        errno.EISDIR: "this is a folder; a file is needed",
        errno.EEXIST: "a file is in the way; choose another path",
    }
    remedy = remedies.get(error.errno)
    return UserError(f"{path}: {remedy}") if remedy else error
