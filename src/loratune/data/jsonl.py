"""Records on disk: one JSON object a line, read with every problem named, and written."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from loratune.data.bad_rows import BadRows
from loratune.data.example import Record, content_id
from loratune.errors import UserError
from loratune.system.atomic import write_text
from loratune.system.read import COMMA_REMEDY, has_comma_too_many, json_problem, parse_json, read_text

T = TypeVar("T")


def read_records(path: Path) -> list[Record]:
    """Raises UserError with every unusable line (up to a limit): file, line, field and what is wrong."""
    records = json_lines(path, lambda _, value: record_of(value, source=Path(path).stem))
    if not records:
        raise UserError(f"{path}: the file is empty; it needs one JSON object a line, with instruction and output")
    return records


def json_lines(path: Path, convert: Callable[[str, Any], T], bad: BadRows | None = None) -> list[T]:
    """`convert` of each line's place, in words, and value; blank lines are none.

    Lines that are not JSON, or for which `convert` raises ValueError, go to `bad`; without it they raise one UserError.
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
            remedy = f"{path}: {COMMA_REMEDY}" if has_comma_too_many(error) else ""
            problems.add(where, f"not valid JSON: {json_problem(error)} (column {error.colno})", remedy)
        except RecursionError:
            problems.add(where, "not valid JSON: nested too deeply")
        except ValueError as error:
            problems.add(where, error)
    if bad is None:
        problems.refuse()
    return results


def read_lines(path: Path) -> list[str]:
    # Split at line feeds alone: JSON strings may hold other characters that Unicode counts as line ends.
    return read_text(path).split("\n")


def record_of(row: Any, source: str) -> Record:
    """Raises ValueError that names the field."""
    row = object_in(row)
    instruction, input, output = text_in(row, "instruction"), text_in(row, "input", needed=False), text_in(row, "output")
    if not isinstance(row.get("meta", {}), dict):
        raise ValueError("meta must be an object")
    if not is_json(row.get("meta")):
        raise ValueError("meta holds what JSON has no word for: a number that is not finite, or a broken character")
    return Record(
        instruction,
        input,
        output,
        id=text_in(row, "id", needed=False) or content_id(instruction, input, output),
        source=text_in(row, "source", needed=False) or source,
        group=text_in(row, "group", needed=False),
        meta=row.get("meta", {}),
    )


def object_in(row: Any) -> dict:
    if not isinstance(row, dict):
        raise ValueError(f"a JSON object is needed, not {kind_of(row)}")
    return row


def text_in(row: dict, name: str, needed: bool = True) -> str:
    """The text of a field; "" where one that is not needed is missing. Raises ValueError that names the field."""
    value = row.get(name)
    if value is None and not needed:
        return ""
    if name not in row:
        raise ValueError(f"{name} is missing (there are: {', '.join(map(str, row)) or 'no fields'})")
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, not {kind_of(value)}")
    if needed and not value.strip():
        raise ValueError(f"{name} is blank")
    if has_lone_surrogate(value):
        raise ValueError(f"{name} holds a broken character (a lone surrogate)")
    return value


def has_lone_surrogate(text: str) -> bool:
    """Half of a surrogate pair is allowed in JSON's escapes but stands for no character; no tokenizer takes it."""
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


def is_json(value: Any) -> bool:
    """Whether the value can be written as JSON that everybody reads."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def kind_of(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else kinds.get(type(value), type(value).__name__)


def write_records(path: Path, records: Iterable[Record]) -> None:
    write_text(path, records_text(records))


def records_text(records: Iterable[Record]) -> str:
    return "".join(json.dumps(record.__dict__, ensure_ascii=False) + "\n" for record in records)
