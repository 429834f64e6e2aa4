"""JSON Lines files of records: one JSON object a line; reading names every problem with its line."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from loratune.data.bad_rows import BadRows
from loratune.data.conversation import build_conversation_record, check_conversation
from loratune.data.example import Record, build_text_record, compute_content_id
from loratune.data.json_values import describe_type, is_serializable, read_text_field, require_object
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
    """Build a record from a line's value: a conversation (messages), plain text (text), or one turn.

    Args:
        row: the value, which should be an object.
        source: the record's source where the line has none.

    Raises:
        ValueError: a field is missing or unusable; the message names it.
    """
    row = require_object(row)
    if not isinstance(row.get("meta", {}), dict):
        raise ValueError("meta must be an object")
    if not is_serializable(row.get("meta")):
        raise ValueError(
            "meta holds what JSON cannot express: a number that is not finite, or a broken character"
        )
    record_id, own_source, group = (
        read_text_field(row, name, required=False) for name in ("id", "source", "group")
    )
    labels = {"source": own_source or source, "group": group, "meta": row.get("meta", {})}
    if "messages" in row:
        messages, tools = read_messages(row), read_tools(row)
        return build_conversation_record(messages, tools=tools, record_id=record_id, **labels)
    if "text" in row and "instruction" not in row:
        return build_text_record(read_text_field(row, "text"), record_id=record_id, **labels)
    instruction, input, output = (
        read_text_field(row, "instruction"),
        read_text_field(row, "input", required=False),
        read_text_field(row, "output"),
    )
    record_id = record_id or compute_content_id(instruction, input, output)
    return Record(instruction, input, output, record_id, **labels)


def read_messages(row: dict) -> list[dict]:
    """Return the field `messages`, checked.

    Raises:
        ValueError: it is no conversation; the message names the field and what is wrong.
    """
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"messages must be a list of role and content, not {describe_type(messages)}")
    try:
        check_conversation(messages)
    except ValueError as error:
        raise ValueError(f"messages: {error}") from None
    if not is_serializable(messages):
        raise ValueError("messages holds what JSON cannot express, such as a broken character")
    return messages


def read_tools(row: dict) -> list[dict]:
    """Return the field `tools`, a list of objects; empty where there is none."""
    tools = row.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError("tools must be a list of objects, each the JSON schema of a function")
    return tools


def write_records(path: Path, records: Iterable[Record]) -> None:
    write_text(path, format_records(records))


def format_records(records: Iterable[Record]) -> str:
    return "".join(json.dumps(record_to_json(record), ensure_ascii=False) + "\n" for record in records)


def record_to_json(record: Record) -> dict[str, Any]:
    """Return a record as a line of a file holds it; `parse_record` reads it back."""
    labels = {"id": record.id, "source": record.source, "group": record.group, "meta": record.meta}
    if record.messages:
        tools = {"tools": record.tools} if record.tools else {}
        return {"messages": record.messages, **tools, **labels}
    if record.is_text:
        return {"text": record.output, **labels}
    return {
        "instruction": record.instruction,
        "input": record.input,
        "output": record.output,
        **labels,
    }
