"""Files are read whole and checked: what is missing, no ordinary file, or not what it should be is said with
file and line.
"""

import codecs
import hashlib
import json
import os
import stat
import tomllib
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loratune.errors import UserError
from loratune.system.atomic import convert_os_error

COMMA_REMEDY = (
    "JSON has no comma after the last entry of a list or object, nor between objects outside a list: take "
    "it out"
)
# Characters; Python's reader takes time with the square of a dotted name's length.
MAX_TOML_CHARACTERS = 2**16


@contextmanager
def open_regular_file(path: Path):
    """Yield an open file of bytes. Raises UserError when it is missing, cannot be read, or is no ordinary
    file.

    A pipe or a device may never end; so that none is waited for, it is opened without waiting.
    """
    if "\0" in str(path):
        raise UserError(f"{path}: there is no such file")
    try:
        with open(
            path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
        ) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"{path}: this is a pipe or a device; a file is needed")
            yield file
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except OSError as error:
        raise convert_os_error(error, path) from error


def hash_file(path: Path) -> str:
    """sha256 of a file's content, in hexadecimal."""
    with open_regular_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: Path) -> str:
    """Read a file in UTF-8, or in UTF-16 where its byte order mark says so; line ends stay as they are.

    The byte order mark is left out. Raises UserError with file and line.
    """
    with open_regular_file(path) as file:
        content = file.read().removeprefix(codecs.BOM_UTF8)
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line}: not {encoding.upper()} text; save the file as UTF-8"
        ) from error


def read_json(path: Path):
    """Raises UserError, naming the file and the line, when it is missing or not JSON."""
    with translate_json_errors(path):
        return parse_json(read_text(path))


@contextmanager
def translate_json_errors(path: Path):
    """Turn what Python's JSON reader raises for the whole of a file into a UserError with file and line."""
    try:
        yield
    except json.JSONDecodeError as error:
        remedy = f"; {COMMA_REMEDY}" if has_extra_comma(error) else ""
        raise UserError(
            f"{path}, line {error.lineno}: not valid JSON: {describe_json_error(error)}{remedy}"
        ) from error
    except RecursionError:
        raise UserError(f"{path}: not valid JSON: nested too deeply") from None
    except ValueError as error:  # such as a number of more digits than Python reads
        raise UserError(f"{path}: not valid JSON: {error}") from error


def describe_json_error(error: json.JSONDecodeError) -> str:
    return "a comma too many" if has_extra_comma(error) else error.msg


def has_extra_comma(error: json.JSONDecodeError) -> bool:
    """Whether the reader stopped at a comma between objects, or at a bracket behind a comma."""
    before, rest = error.doc[: error.pos].rstrip(), error.doc[error.pos :].lstrip()
    if rest.startswith(("}", "]")):
        return before.endswith(",")
    # Later versions of Python stop at the comma inside of a list or an object, too.
    return rest.startswith(",") and (before.endswith(("}", "]")) or rest[1:].lstrip().startswith(("}", "]")))


def parse_json(text: str):
    """Raises ValueError, too, for an object with a name twice, of which JSON does not say which one
    counts.
    """
    return json.loads(text, object_pairs_hook=build_unique_dict)


def build_unique_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{twice[:80]!r} stands twice in one object; only one of them can be meant")
    return found


def load_toml(path: Path) -> dict[str, Any]:
    """Raises UserError, naming the file and the line, when it is missing or not TOML."""
    text = read_text(path)
    if len(text) > MAX_TOML_CHARACTERS:
        raise UserError(
            f"{path}: {len(text):,} characters are too many for a file of settings; the most is "
            f"{MAX_TOML_CHARACTERS:,}"
        )
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise UserError(f"{path}: cannot be read as TOML: nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{path}: cannot be read as TOML: {error}") from error
    if long := [name for name, value in values.items() if not fits_toml(value)]:
        raise UserError(
            f"{path}: cannot be read as TOML: {long[0]} holds a whole number of more than 64 bits"
        )
    return values


def fits_toml(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(fits_toml, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, int) or -(2**63) <= value < 2**63
