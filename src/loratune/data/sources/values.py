"""Convert the cells of a user's file to text: what counts as text, and what as missing."""

import math
from typing import Any

from loratune.data.json_values import describe_type, has_lone_surrogate, is_serializable

# Texts with which people and programs say that there is no input.
PLACEHOLDERS = ("<noinput>", "n/a", "nan", "none", "null")


def read_cell(values: dict, name: str, required: bool = True) -> str:
    """Return a cell as text, unchanged if it is text; numbers, true, false and dates are converted.

    Returns:
        The text; "" if the cell is missing, null, NaN or blank.

    Raises:
        ValueError: the cell is not text, or it is empty and `required`; the message names the column.
    """
    value = values.get(name)
    if isinstance(value, dict | list | bytes):
        raise ValueError(f"{name} must be text, not {describe_type(value)}")
    text = "" if is_missing(value) else format_cell(value)
    if has_lone_surrogate(text):
        raise ValueError(f"{name} holds a broken character (a lone surrogate)")
    if text.strip():
        return text
    if required:
        raise ValueError(f"{name} is {'blank' if isinstance(value, str) else 'missing'}")
    return ""


def is_missing(value: Any) -> bool:
    """Tell whether a value is null, or NaN, which pandas writes for null."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_blank(value: Any) -> bool:
    return is_missing(value) or value in ([], {}) or (isinstance(value, str) and not value.strip())


def format_cell(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def is_placeholder(text: str) -> bool:
    """Tell whether a text says that there is no text."""
    return text.strip().casefold() in PLACEHOLDERS


def read_meta(values: dict) -> dict:
    """Return the record's `meta`; a column of that name that is no JSON object is ignored."""
    meta = values.get("meta")
    return meta if isinstance(meta, dict) and is_serializable(meta) else {}
