"""Texts in the cells of a user's file: what counts as text, and what counts as nothing."""

import math
from typing import Any

from loratune.data.jsonl import describe_type, has_lone_surrogate

# Texts by which people and programs say that there is no input.
PLACEHOLDERS = ("<noinput>", "n/a", "nan", "none", "null")


def read_cell(values: dict, name: str, required: bool = True) -> str:
    """The text of a cell, to the byte; a number, true, false or a date as text.

    What is missing, null, NaN or blank is "", or raises ValueError that names the column where a text is
    needed.
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
    """Null, and NaN, by which pandas writes it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_blank(value: Any) -> bool:
    return is_missing(value) or value in ([], {}) or (isinstance(value, str) and not value.strip())


def format_cell(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def is_placeholder(text: str) -> bool:
    """Whether the text says that there is none."""
    return text.strip().casefold() in PLACEHOLDERS
