"""Rows of a file: JSON lines, JSON, CSV or Parquet to one dict of values each, with its place for messages."""

import csv
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratune.data.bad_rows import BadRows
from loratune.data.records import json_lines, kind_of, object_in, read_lines
from loratune.errors import UserError
from loratune.files import explained
from loratune.reading import read_json, reading

# Of one data set in several kinds of files, the first is taken.
KINDS = (".parquet", ".jsonl", ".json", ".csv")
# A small Parquet file may claim billions of equal rows.
MOST_ROWS_A_BYTE = 100
LONGEST_CELL = 2**31 - 1  # of a CSV file; Python's own limit is 131,072 characters


@dataclass(frozen=True)
class FileRow:
    where: str  # file and line or row, for messages
    values: dict[str, Any]


def read_rows(path: Path, bad: BadRows | None = None) -> list[FileRow]:
    """The rows as they are in the file.

    Raises UserError when it is missing, empty, broken or of an unknown kind. Single rows that cannot be read go to `bad`;
    without it they raise, too.
    """
    path = Path(path)
    readers = {".jsonl": jsonl_rows, ".json": json_rows, ".csv": csv_rows, ".parquet": parquet_rows}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path}: unknown kind of file; use {', '.join(KINDS)}")
    refuse_unreadable(path)
    problems = bad or BadRows()
    rows = readers[path.suffix.lower()](path, problems)
    if bad is None:
        problems.refuse()
    if not rows and not problems.problems:
        raise UserError(f"{path}: the file is empty; it needs at least one row with an instruction and an output")
    return rows


def refuse_unreadable(path: Path) -> None:
    """Raises UserError where there is no file, or none that may be read."""
    with reading(path):
        pass


def jsonl_rows(path: Path, bad: BadRows) -> list[FileRow]:
    return json_lines(path, lambda where, value: FileRow(where, object_in(value)), bad)


def json_rows(path: Path, bad: BadRows) -> list[FileRow]:
    """A list of objects, or an object that holds exactly one such list."""
    if not any(map(str.strip, read_lines(path))):
        return []
    content = read_json(path)
    lists = [value for value in content.values() if isinstance(value, list)] if isinstance(content, dict) else [content]
    if len(lists) != 1 or not isinstance(lists[0], list):
        raise UserError(f"{path}: a list of objects is needed, or an object with one list in it; found {kind_of(content)}")
    rows = []
    for number, value in enumerate(lists[0], 1):
        where = f"{path}, row {number}"
        try:
            rows.append(FileRow(where, object_in(value)))
        except ValueError as error:
            bad.add(where, error)
    return rows


def csv_rows(path: Path, bad: BadRows) -> list[FileRow]:
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO("\n".join(read_lines(path)), newline=""), strict=True)
    header: list[str] = []
    rows = []
    first_line = 1  # of the row that is read next; a row may have several
    try:
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if not header:
                header = cells
                if twice := [name for name, count in Counter(header).items() if name and count > 1]:
                    raise UserError(f"{where}: the header names {', '.join(map(repr, twice))} twice; rename one column")
            elif len(cells) == len(header):
                rows.append(FileRow(where, dict(zip(header, cells, strict=True))))
            elif cells:
                bad.add(where, f"the row has not as many cells as the {len(header)} columns of the header")
            first_line = reader.line_num + 1
    except csv.Error as error:
        told = "a quote that opens in this row is not closed" if "unexpected end" in str(error) else error
        bad.add(f"{path}, line {first_line}", f"not valid CSV: {told}")
    return rows


def parquet_rows(path: Path, bad: BadRows) -> list[FileRow]:
    from pyarrow import parquet

    try:
        claimed, size = parquet.read_metadata(path).num_rows, path.stat().st_size
        if claimed > MOST_ROWS_A_BYTE * size:
            raise ValueError(f"{claimed:,} rows in {size:,} bytes cannot be texts")
        values = parquet.read_table(path).to_pylist()
    except Exception as error:  # whatever Arrow raises for a broken file
        if (known := explained(error, path)) is not error:
            raise known from error
        raise UserError(f"{path}: cannot be read as Parquet: {error}") from error
    return [FileRow(f"{path}, row {number}", row) for number, row in enumerate(values, 1)]
