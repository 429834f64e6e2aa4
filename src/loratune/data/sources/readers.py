"""Read the rows of JSON Lines, JSON, CSV, TSV and Parquet files, each with its location for messages."""

import json
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratune.data.bad_rows import BadRows
from loratune.data.json_values import describe_type, require_object
from loratune.data.jsonl import read_json_lines
from loratune.data.sources.tables import read_table_rows
from loratune.data.sources.unsupported_files import suggest_conversion
from loratune.errors import UserError
from loratune.system.atomic import convert_os_error
from loratune.system.read import (
    build_unique_dict,
    open_regular_file,
    parse_json,
    read_text,
    translate_json_errors,
)

# A small Parquet file may claim billions of equal rows, which would exhaust memory.
MAX_ROWS_PER_BYTE = 100
JSON_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class FileRow:
    """A row of a file, before it becomes a record."""

    where: str  # file and line or row, for messages
    values: dict[str, Any]


def read_rows(path: Path, bad: BadRows | None = None) -> list[FileRow]:
    """Read the rows as they are in the file.

    Args:
        path: the file.
        bad: collects single rows that cannot be read.

    Raises:
        UserError: the file is missing, empty, broken or of an unknown kind, or it has rows that cannot be
            read and there is no `bad`.
    """
    path = Path(path)
    refuse_unreadable(path)
    problems = bad or BadRows()
    rows = READERS[path.suffix.lower()](path, problems)
    if bad is None:
        problems.refuse()
    if not rows and not problems.problems:
        raise UserError(
            f"{path}: the file is empty; it needs at least one row with an instruction and an output"
        )
    return rows


def refuse_unreadable(path: Path) -> None:
    """Raise UserError if the file is missing, may not be read, or is of an unknown kind."""
    if path.suffix.lower() not in READERS:
        raise UserError(
            "; ".join(
                [
                    f"{path}: unknown kind of file",
                    f"use {', '.join(DATA_SUFFIXES)}",
                    *suggest_conversion(path),
                ]
            )
        )
    with open_regular_file(path):
        pass


def read_json_rows(path: Path, bad: BadRows) -> list[FileRow]:
    """Read objects, one after another or in a list, whether the file is named .json or .jsonl."""
    text = read_text(path)
    try:
        values = parse_json_values(text)
    except (ValueError, RecursionError) as error:
        if is_json_lines(path, text):
            return read_json_lines(path, lambda where, value: FileRow(where, require_object(value)), bad)
        with translate_json_errors(path):
            raise error
    numbered = [(f"{path}, line {line}", value) for line, value in values]
    if len(values) == 1 and (row_list := find_row_list(path, values[0][1])) is not None:
        numbered = [(f"{path}, row {number}", value) for number, value in enumerate(row_list, 1)]
    rows = []
    for where, value in numbered:
        try:
            rows.append(FileRow(where, require_object(value)))
        except ValueError as error:
            bad.add(where, error)
    return rows


def find_row_list(path: Path, content: Any) -> list | None:
    """Return the list of rows in a file's only value; None where that value is a row itself.

    An object in a .json file that holds exactly one list stands for that list.
    """
    if path.suffix.lower() == ".jsonl":
        return (
            content
            if isinstance(content, list) and any(isinstance(value, dict) for value in content)
            else None
        )
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        # An object of objects is no row but a table by columns or keys, which is not read.
        if not lists and not all(isinstance(value, dict) for value in content.values()):
            return None
    else:
        lists = [content]
    if len(lists) != 1 or not isinstance(lists[0], list):
        raise UserError(
            f"{path}: a list of objects is needed, or an object with one list in it; found "
            f"{describe_type(content)}"
        )
    return lists[0]


def parse_json_values(text: str) -> list[tuple[int, Any]]:
    """Parse JSON values that follow one another in a text.

    Returns:
        The line on which each value begins, and the value.

    Raises:
        ValueError: the text is not JSON, as in json.loads.
        RecursionError: a value is nested too deeply.
    """
    decoder = json.JSONDecoder(object_pairs_hook=build_unique_dict)
    values = []
    line, counted = 1, 0
    position = skip_space(text, 0)
    while position < len(text):
        line += text.count("\n", counted, position)
        counted = position
        value, position = decoder.raw_decode(text, position)
        values.append((line, value))
        position = skip_space(text, position)
    return values


def skip_space(text: str, position: int) -> int:
    """Return the position of the next character that JSON does not take for white space."""
    match = JSON_SPACE.match(text, position)
    return match.end() if match else position


def is_json_lines(path: Path, text: str) -> bool:
    """Tell whether a text that is not JSON has one row a line, so that each broken line can be named."""
    first, *others = [line for line in text.split("\n") if line.strip()]
    if not others:
        return path.suffix.lower() == ".jsonl"
    return is_json_line(first) or (
        first.lstrip().startswith("{") and any(line.startswith("{") and is_json_line(line) for line in others)
    )


def is_json_line(line: str) -> bool:
    try:
        parse_json(line)
    except json.JSONDecodeError:
        return False
    except (ValueError, RecursionError):
        pass  # JSON that is refused; the error of its line says why
    return True


def read_delimited_rows(path: Path, bad: BadRows) -> list[FileRow]:
    return [FileRow(f"{path}, line {line}", values) for line, values in read_table_rows(path, bad)]


def read_parquet_rows(path: Path, bad: BadRows) -> list[FileRow]:
    from pyarrow import parquet

    try:
        claimed, size = parquet.read_metadata(path).num_rows, path.stat().st_size
        if claimed > MAX_ROWS_PER_BYTE * size:
            raise ValueError(f"{claimed:,} rows in {size:,} bytes cannot be texts")
        table = parquet.read_table(path)
    except Exception as error:  # whatever Arrow raises for a broken file
        if (os_error := convert_os_error(error, path)) is not error:
            raise os_error from error
        raise UserError(f"{path}: cannot be read as Parquet: {error}") from error
    if len(set(table.column_names)) < table.num_columns:
        repeated, _ = Counter(table.column_names).most_common(1)[0]
        raise UserError(f"{path}: two columns have the name {repeated!r}; rename one")
    columns = {name: convert_column(path, name, table.column(name)) for name in table.column_names}
    names = [name for name, values in columns.items() if values is not None]
    rows = zip(*(columns[name] for name in names), strict=True)
    return [
        FileRow(f"{path}, row {number}", dict(zip(names, row, strict=True)))
        for number, row in enumerate(rows, 1)
    ]


def convert_column(path: Path, name: str, column) -> list | None:
    """Convert an Arrow column to Python values.

    Returns:
        The values; None where Python cannot represent them, such as a date in the year 300,000, so that the
        column holds no text.

    Raises:
        UserError: text is not UTF-8.
    """
    kind = str(column.type)
    try:
        if kind in ("binary", "large_binary"):  # some writers store text as bytes
            with suppress(ValueError):
                column = column.cast("large_string")
        return column.to_pylist()
    except Exception as error:  # its class depends on the column's type
        if "string" in kind:
            raise UserError(f"{path}: column {name!r} is not UTF-8 text: {error}") from error
    try:
        return column.cast("string").to_pylist()  # such as a time in nanoseconds
    except Exception:
        return None


READERS: dict[str, Callable[[Path, BadRows], list[FileRow]]] = {
    ".parquet": read_parquet_rows,
    ".jsonl": read_json_rows,
    ".json": read_json_rows,
    ".csv": read_delimited_rows,
    ".tsv": read_delimited_rows,
}
# Where a data set has files of several kinds, the first of these kinds is read.
DATA_SUFFIXES = tuple(READERS)
