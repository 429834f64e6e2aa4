"""The user's own files: JSON lines, JSON, CSV and Parquet; in Alpaca, prompt/completion or messages form.

Every problem is named with its file, its line or row, and the field.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from loratune.data.bad_rows import BadRows
from loratune.data.records import Record, content_id, is_json, kind_of, object_in, text_in
from loratune.data.sources.loaded import Loaded
from loratune.data.sources.readers import FileRow, read_rows
from loratune.errors import UserError

# What our fields are called elsewhere, the likeliest first.
SYNONYMS = {
    "instruction": ("instruction", "prompt", "question", "query"),
    "input": ("input", "context"),
    "output": ("output", "completion", "response", "answer"),
    "group": ("group",),
    "id": ("id",),
}
# Messages hold all the rest.
BESIDE_MESSAGES = ("group", "id")


def load_files(paths: Sequence[Path], columns: dict[str, str], name: str, origin: str, split: str | None = None) -> Loaded:
    """Records of one data set in one or more files. Raises UserError with all problems, up to a limit."""
    records = [record for path in paths for record in file_records(path, columns, name)]
    return Loaded(name, origin, records, split)


def file_records(path: Path, columns: dict[str, str], source: str) -> list[Record]:
    rows = read_rows(path)
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    if "messages" in names and not columns.keys() & {"instruction", "output"}:
        roles = roles_beside_messages(names, columns, path)
        return pick(rows, lambda values: conversation(values, roles, source))
    roles = roles_of(names, columns, path)
    return pick(rows, lambda values: mapped_record(values, roles, source))


def pick(rows: Sequence[FileRow], convert: Callable[[dict], Any], bad: BadRows | None = None) -> list:
    """`convert` for every row. Rows for which it raises ValueError go to `bad`; without it they raise one UserError."""
    problems = bad or BadRows()
    results = []
    for row in rows:
        try:
            results.append(convert(row.values))
        except ValueError as error:
            problems.add(row.where, error)
    if bad is None:
        problems.refuse()
    return results


def roles_of(names: list[str], columns: dict[str, str], path: Path) -> dict[str, str]:
    """Our field to the file's column: as the user says, else by the usual names."""
    problems = [f"--columns {role}: unknown; the left side is one of {', '.join(SYNONYMS)}" for role in columns.keys() - SYNONYMS]
    problems += unknown_columns(names, columns, path)
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


def roles_beside_messages(names: list[str], columns: dict[str, str], path: Path) -> dict[str, str]:
    problems = [
        f"--columns {role}: unknown for messages; the left side is one of {', '.join(BESIDE_MESSAGES)}"
        for role in columns.keys() - set(BESIDE_MESSAGES)
    ]
    problems += unknown_columns(names, columns, path)
    if problems:
        raise UserError(*sorted(problems), f"{path}: its columns are {', '.join(map(str, names))}")
    return {role: role for role in BESIDE_MESSAGES if role in names} | columns


def unknown_columns(names: list[str], columns: dict[str, str], path: Path) -> list[str]:
    return [
        f"{path}: no column {column!r} for --columns {role}={column}" for role, column in columns.items() if column not in names
    ]


def mapped_record(values: dict, roles: dict[str, str], source: str) -> Record:
    """Of a file in record form `meta` is kept, but not `source`: reports and scores are by data set, so that is its name."""
    instruction, output = (text_in(values, roles[role]).strip() for role in ("instruction", "output"))
    input = text_in(values, roles["input"], needed=False).strip() if "input" in roles else ""
    return labelled(Record(instruction, input, output, "", source, meta=meta_in(values)), values, roles)


def labelled(record: Record, values: dict, roles: dict[str, str]) -> Record:
    """The record with its row's id, else one made of its content, and with its row's group, if it has one."""
    id, group = (label_in(values, roles[role]) if role in roles else "" for role in ("id", "group"))
    return replace(record, id=id or content_id(record.instruction, record.input, record.output), group=group)


def label_in(values: dict, name: str) -> str:
    """An id or a group: text, or a number, which as text serves as well; "" where there is none."""
    value = values.get(name)
    if isinstance(value, bool | list | dict | bytes) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{name} must be text or a number, not {value if isinstance(value, float) else kind_of(value)}")
    return "" if value is None else text_in({name: str(value)}, name, needed=False).strip()


def meta_in(values: dict) -> dict:
    """The record's `meta`. A column of that name which is no object of JSON is left out, as unknown columns are."""
    meta = values.get("meta")
    return meta if isinstance(meta, dict) and is_json(meta) else {}


def conversation(values: dict, roles: dict[str, str], source: str) -> Record:
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
    return labelled(Record(instruction, earlier, output, "", source), values, roles)


def turn_of(turn: Any, number: int) -> tuple[str, str]:
    """(role, content). Raises ValueError that names the message."""
    try:
        return text_in(object_in(turn), "role"), text_in(turn, "content").strip()
    except ValueError as error:
        raise ValueError(f"messages, number {number}: {error}") from error
