"""The user's own files: JSON lines, JSON, CSV and Parquet; in Alpaca, prompt/completion or messages form.

Every problem is named with its file, its line or row, and the field.
"""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from loratune.data.records import Record, content_id, kind_of, object_in, raise_listed, read_lines, text_in
from loratune.data.sources.loaded import Loaded
from loratune.errors import UserError
from loratune.files import explained, read_json

# What our fields are called elsewhere, the likeliest first.
SYNONYMS = {
    "instruction": ("instruction", "prompt", "question", "query"),
    "input": ("input", "context"),
    "output": ("output", "completion", "response", "answer"),
    "group": ("group",),
    "id": ("id",),
}
# Of one data set in several kinds of files, the first is taken.
KINDS = (".parquet", ".jsonl", ".json", ".csv")


@dataclass(frozen=True)
class FileRow:
    where: str  # file and line or row, for messages
    values: dict[str, Any]


def load_files(paths: Sequence[Path], columns: dict[str, str], name: str, origin: str, split: str | None = None) -> Loaded:
    """Records of one data set in one or more files. Raises UserError with all problems, up to a limit."""
    records = [record for path in paths for record in file_records(path, columns, name)]
    return Loaded(name, origin, records, split)


def file_records(path: Path, columns: dict[str, str], source: str) -> list[Record]:
    rows = read_rows(path)
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    if not columns and "messages" in names:
        return pick(rows, lambda values: conversation(values, source))
    roles = roles_of(names, columns, path)
    return pick(rows, lambda values: mapped_record(values, roles, source))


def read_rows(path: Path) -> list[FileRow]:
    """The rows as they are in the file. Raises UserError when it is missing, empty, broken or of an unknown kind."""
    path = Path(path)
    readers = {".jsonl": jsonl_rows, ".json": json_rows, ".csv": csv_rows, ".parquet": parquet_rows}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path}: unknown kind of file; use {', '.join(KINDS)}")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    rows = readers[path.suffix.lower()](path)
    if not rows:
        raise UserError(f"{path}: the file is empty; it needs at least one row with an instruction and an output")
    return rows


def jsonl_rows(path: Path) -> list[FileRow]:
    rows, problems = [], []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            rows.append(FileRow(where, object_in(json.loads(line))))
        except json.JSONDecodeError as error:
            problems.append(f"{where}: not valid JSON: {error.msg} (column {error.colno})")
        except RecursionError:
            problems.append(f"{where}: not valid JSON: nested too deeply")
        except ValueError as error:
            problems.append(f"{where}: {error}")
    raise_listed(problems)
    return rows


def json_rows(path: Path) -> list[FileRow]:
    """A list of objects, or an object that holds exactly one such list."""
    if not path.read_bytes().strip():
        return []
    content = read_json(path)
    lists = [value for value in content.values() if isinstance(value, list)] if isinstance(content, dict) else [content]
    if len(lists) != 1 or not isinstance(lists[0], list):
        raise UserError(f"{path}: a list of objects is needed, or an object with one list in it; found {kind_of(content)}")
    rows, problems = [], []
    for number, value in enumerate(lists[0], 1):
        try:
            rows.append(FileRow(f"{path}, row {number}", object_in(value)))
        except ValueError as error:
            problems.append(f"{path}, row {number}: {error}")
    raise_listed(problems)
    return rows


def csv_rows(path: Path) -> list[FileRow]:
    reader = csv.DictReader(io.StringIO("\n".join(read_lines(path)), newline=""), strict=True)
    rows, problems = [], []
    try:
        for values in reader:
            where = f"{path}, line {reader.line_num}"
            if None in values or None in values.values():
                problems.append(
                    f"{where}: the row has not as many cells as the {len(reader.fieldnames or [])} columns of the header"
                )
            rows.append(FileRow(where, values))
    except csv.Error as error:
        problems.append(f"{path}, line {reader.line_num}: not valid CSV: {error}")
    raise_listed(problems)
    return rows


def parquet_rows(path: Path) -> list[FileRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        values = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: cannot be read as Parquet: {error}") from error
    except OSError as error:
        raise explained(error, path) from error
    return [FileRow(f"{path}, row {number}", row) for number, row in enumerate(values, 1)]


def pick(rows: Sequence[FileRow], convert: Callable[[dict], Any]) -> list:
    """`convert` for every row. Raises one UserError with all the ValueErrors that it raised, up to a limit."""
    results, problems = [], []
    for row in rows:
        try:
            results.append(convert(row.values))
        except ValueError as error:
            problems.append(f"{row.where}: {error}")
    raise_listed(problems)
    return results


def roles_of(names: list[str], columns: dict[str, str], path: Path) -> dict[str, str]:
    """Our field to the file's column: as the user says, else by the usual names."""
    problems = [f"--columns {role}: unknown; the left side is one of {', '.join(SYNONYMS)}" for role in columns.keys() - SYNONYMS]
    problems += [
        f"{path}: no column {column!r} for --columns {role}={column}" for role, column in columns.items() if column not in names
    ]
    usual = {role: next((name for name in synonyms if name in names), None) for role, synonyms in SYNONYMS.items()}
    roles = {role: name for role, name in (usual | columns).items() if name}
    problems += [
        f"{path}: no column for {role}; say which it is with --columns {role}=NAME"
        for role in ("instruction", "output")
        if role not in roles
    ]
    if problems:
        raise UserError(*sorted(problems), f"{path}: its columns are {', '.join(map(str, names))}")
    return roles


def mapped_record(values: dict, roles: dict[str, str], source: str) -> Record:
    instruction, output = (text_in(values, roles[role]).strip() for role in ("instruction", "output"))
    input, group = (text_in(values, roles[role], needed=False).strip() if role in roles else "" for role in ("input", "group"))
    # Numbers are common as ids; as text they serve as well.
    given = values.get(roles["id"]) if "id" in roles else None
    id = "" if given is None else str(given)
    return Record(instruction, input, output, id or content_id(instruction, input, output), source, group)


def conversation(values: dict, source: str) -> Record:
    """The last answered question of a chat; all that was said before it, the system message too, becomes the input."""
    turns = values.get("messages")
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"messages must be a list of role and content, not {kind_of(turns)}")
    said = [turn_of(turn, number) for number, turn in enumerate(turns, 1)]
    answered = [number for number, (one, next) in enumerate(pairwise(said)) if (one[0], next[0]) == ("user", "assistant")]
    if not answered:
        raise ValueError("messages has no turn of the user that the assistant answers")
    last = answered[-1]
    instruction, output = said[last][1], said[last + 1][1]
    earlier = "\n".join(f"{role.capitalize()}: {content}" for role, content in said[:last])
    return Record(instruction, earlier, output, content_id(instruction, earlier, output), source)


def turn_of(turn: Any, number: int) -> tuple[str, str]:
    """(role, content). Raises ValueError that names the message."""
    try:
        return text_in(object_in(turn), "role"), text_in(turn, "content").strip()
    except ValueError as error:
        raise ValueError(f"messages, number {number}: {error}") from error
