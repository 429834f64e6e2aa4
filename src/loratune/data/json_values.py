"""Checks of values that were read from JSON: objects, texts, and what can be written again."""

import json
from typing import Any


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
