"""JSON Lines files of records: one JSON object a line; reading names every problem with its line."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from loratune.data.bad_rows import BadRows
from loratune.data.example import Record, compute_content_id
from loratune.errors import UserError
from loratune.system.atomic import write_text
from loratune.system.read import COMMA_REMEDY, describe_json_error, has_extra_comma, parse_json, read_text

T = TypeVar("T")


def read_records(path: Path) -> list[Record]:
    """Read the records of a JSON Lines file.

    Raises:
        UserError: lines are unusable, or there are none. Each problem names file, line and field.
    """
    records = read_json_lines(path, lambda _, value: parse_record(value, source=Path(path).stem))
    if not records:
        raise UserError(
            f"{path}: the file is empty; it needs one JSON object a line, with instruction and output"
        )
    return records


def read_json_lines(path: Path, convert: Callable[[str, Any], T], bad: BadRows | None = None) -> list[T]:
    """Read and convert each line that is not blank.

    Args:
        path: the file.
        convert: makes a result of a line's place, such as "file, line 3", and of its value.
        bad: collects lines that are not JSON, or for which `convert` raises ValueError.

    Raises:
        UserError: there are such lines and no `bad` to collect them.
    """
    problems = bad or BadRows()
    results = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            results.append(convert(where, parse_json(line)))
        except json.JSONDecodeError as error:
            remedy = f"{path}: {COMMA_REMEDY}" if has_extra_comma(error) else ""
            problems.add(
                where, f"not valid JSON: {describe_json_error(error)} (column {error.colno})", remedy
            )
        except RecursionError:
            problems.add(where, "not valid JSON: nested too deeply")
        except ValueError as error:
            problems.add(where, error)
    if bad is None:
        problems.refuse()
    return results


def read_lines(path: Path) -> list[str]:
    # Unlike str.splitlines, because JSON strings may hold other characters that Unicode counts as line ends.
    return read_text(path).split("\n")


def parse_record(row: Any, source: str) -> Record:
    """Build a record from a line's value.

    Args:
        row: the value, which should be an object.
        source: the record's source where the line has none.

    Raises:
        ValueError: a field is missing or unusable; the message names it.
    """
    row = require_object(row)
    instruction, input, output = (
        read_text_field(row, "instruction"),
        read_text_field(row, "input", required=False),
        read_text_field(row, "output"),
    )
    if not isinstance(row.get("meta", {}), dict):
        raise ValueError("meta must be an object")
    if not is_serializable(row.get("meta")):
        raise ValueError(
            "meta holds what JSON cannot express: a number that is not finite, or a broken character"
        )
    return Record(
        instruction,
        input,
        output,
        id=read_text_field(row, "id", required=False) or compute_content_id(instruction, input, output),
        source=read_text_field(row, "source", required=False) or source,
        group=read_text_field(row, "group", required=False),
        meta=row.get("meta", {}),
    )


def require_object(row: Any) -> dict:
    if not isinstance(row, dict):
        raise ValueError(f"a JSON object is needed, not {describe_type(row)}")
    return row


def read_text_field(row: dict, name: str, required: bool = True) -> str:
    """Return the text of a field; "" where it is missing and not required.

    Raises:
        ValueError: the field is missing, blank or no text; the message names it.
    """
    value = row.get(name)
    if value is None and not required:
        return ""
    if name not in row:
        raise ValueError(f"{name} is missing (there are: {', '.join(map(str, row)) or 'no fields'})")
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, not {describe_type(value)}")
    if required and not value.strip():
        raise ValueError(f"{name} is blank")
    if has_lone_surrogate(value):
        raise ValueError(f"{name} holds a broken character (a lone surrogate)")
    return value


def has_lone_surrogate(text: str) -> bool:
    """Tell whether a text holds half of a surrogate pair.

    JSON's escapes allow it, but it stands for no character, and no tokenizer accepts it.
    """
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


def is_serializable(value: Any) -> bool:
    """Tell whether a value can be written as standard JSON in UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def describe_type(value: Any) -> str:
    kinds = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else kinds.get(type(value), type(value).__name__)


def write_records(path: Path, records: Iterable[Record]) -> None:
    write_text(path, format_records(records))


def format_records(records: Iterable[Record]) -> str:
    return "".join(json.dumps(record.__dict__, ensure_ascii=False) + "\n" for record in records)
