"""Convert a row of a user's file to a record: one in columns, perhaps with a history, or plain text."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from loratune.data.conversation import build_conversation_record, join_input
from loratune.data.example import Message, Record, build_text_record, compute_content_id
from loratune.data.json_values import describe_type, read_text_field
from loratune.data.sources.messages import parse_json_list
from loratune.data.sources.values import is_blank, is_placeholder, read_cell, read_meta

NO_INPUT = "inputs that only say that there is none (such as N/A), taken as none"
NO_OUTPUT = "outputs that only say that there is none (such as N/A), learned as they are"
IN_HISTORY = "answers in histories, learned, too"
HISTORY_FORM = "write it as a list of [user, assistant] pairs"


def convert_row(values: dict, roles: Mapping[str, str], source: str, *, counts: Counter[str]) -> Record:
    """Convert a row to a record; with a system prompt or a history it becomes a conversation.

    Texts are not stripped, because leading spaces and line ends matter in code. The row's `meta` is kept, but
    not its `source`: that is the data set's name, by which reports and scores are grouped.

    Args:
        values: the row.
        roles: the column of each role.
        source: the record's source.
        counts: is updated with how cells were handled.

    Raises:
        ValueError: a cell is unusable; the text names it.
    """
    instruction, output = (read_cell(values, roles[role]) for role in ("instruction", "output"))
    text = read_cell(values, roles["input"], required=False) if "input" in roles else ""
    system = read_cell(values, roles["system"], required=False) if "system" in roles else ""
    history = read_history(values, roles["history"]) if "history" in roles else []
    if is_placeholder(text):
        counts[NO_INPUT] += 1
        text = ""
    counts[NO_OUTPUT] += is_placeholder(output)
    counts[IN_HISTORY] += len(history) // 2
    meta = read_meta(values)
    if not system and not history:
        record = Record(instruction, text, output, "", source, meta=meta)
        return add_id_and_group(record, values, roles)
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    messages += [
        *history,
        {"role": "user", "content": join_input(instruction, text)},
        {"role": "assistant", "content": output},
    ]
    record = build_conversation_record(messages, source=source, meta=meta)
    return add_id_and_group(record, values, roles)


def read_history(values: dict, name: str) -> list[Message]:
    """Return the messages of a history, a list of a user's texts with their answers, perhaps as JSON text.

    Raises:
        ValueError: it is something else; the text names the turn.
    """
    history = parse_json_list(values.get(name))
    if is_blank(history):
        return []
    if not isinstance(history, list):
        raise ValueError(f"{name} must be a list, not {describe_type(history)}; {HISTORY_FORM}")
    messages: list[Message] = []
    for number, turn in enumerate(history, 1):
        if not isinstance(turn, list) or len(turn) != 2:
            found = f"a list of {len(turn)}" if isinstance(turn, list) else describe_type(turn)
            raise ValueError(f"{name}: turn {number} is {found}; {HISTORY_FORM}")
        for role, content in zip(("user", "assistant"), turn, strict=True):
            where = f"{name}: turn {number}: the {role}'s text"
            messages.append({"role": role, "content": read_cell({where: content}, where)})
    return messages


def convert_text(values: dict, roles: Mapping[str, str], source: str) -> Record:
    """Convert a row of plain text to a record.

    Raises:
        ValueError: the text, the group or the id is unusable.
    """
    record = build_text_record(read_cell(values, roles["text"]), source=source, meta=read_meta(values))
    return add_id_and_group(record, values, roles)


def add_id_and_group(record: Record, values: dict, roles: Mapping[str, str]) -> Record:
    """Return the record with the row's group and its id, or one computed from its content."""
    own_id, group = (read_label(values, roles[role]) if role in roles else "" for role in ("id", "group"))
    computed = record.id or compute_content_id(record.instruction, record.input, record.output)
    return replace(record, id=own_id or computed, group=group)


def read_label(values: dict, name: str) -> str:
    """Return an id or a group, text or a number, as text; "" where there is none."""
    value = values.get(name)
    if isinstance(value, bool | list | dict | bytes) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise ValueError(
            f"{name} must be text or a number, not "
            f"{value if isinstance(value, float) else describe_type(value)}"
        )
    return "" if value is None else read_text_field({name: str(value)}, name, required=False).strip()
