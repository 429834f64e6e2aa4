"""Read text, JSON and TOML files; report missing, broken and special files, with the line."""

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
    """Yield a file opened for reading bytes, without blocking, because a pipe or a device may never answer.

    Raises:
        UserError: the file is missing, unreadable or not a regular file.
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
    """Return the sha256 of a file's content, in hexadecimal."""
    with open_regular_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: Path) -> str:
    """Read a file in UTF-8, or in UTF-16 if its byte order mark says so, without that mark.

    Line ends are kept.

    Raises:
        UserError: the file is not text in that encoding; the message names the line.
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


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises UserError, naming the file and the line, when it is missing or not JSON."""
    with translate_json_errors(path):
        return parse_json(read_text(path))


@contextmanager
def translate_json_errors(path: Path):
    """Convert the errors of Python's JSON parser to a UserError with file and line."""
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
    """Return whether the parser stopped at a comma between objects, or at a bracket after a comma."""
    before, rest = error.doc[: error.pos].rstrip(), error.doc[error.pos :].lstrip()
    if rest.startswith(("}", "]")):
        return before.endswith(",")
    # Later versions of Python also stop at the comma in a list or an object.
    return rest.startswith(",") and (before.endswith(("}", "]")) or rest[1:].lstrip().startswith(("}", "]")))


def parse_json(text: str) -> Any:
    """Parse JSON. Raises ValueError also for an object with a duplicate name, which is ambiguous."""
    return json.loads(text, object_pairs_hook=build_unique_dict)


def build_unique_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        duplicate, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{duplicate[:80]!r} stands twice in one object; only one of them can be meant")
    return unique


def load_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises UserError, naming the file and the line, when it is missing or not TOML."""
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
