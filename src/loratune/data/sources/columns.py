"""Columns of a user's file: which one is the instruction, the input and the output, and which are not
used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loratune.data.sources.readers import FileRow
from loratune.data.sources.values import is_blank
from loratune.errors import Problem

# What our fields are called elsewhere, the likeliest first; the order of the fields is that in which they
# choose.
SYNONYMS = {
    "instruction": ("instruction", "prompt", "question", "query"),
    "output": ("output", "completion", "response", "answer"),
    "input": ("input", "context"),
    "group": ("group",),
    "id": ("id",),
}
REQUIRED = ("instruction", "output")
# Columns that change what a row means, and that nothing is taken from.
MEANINGFUL_COLUMNS = {
    "system": "the system prompt of a row; to keep it, write it as the first of the row's messages",
    "system_prompt": "the system prompt of a row; to keep it, write it as the first of the row's messages",
    "history": "earlier turns of a conversation; to keep them, write them as messages",
    "weight": "the weights of rows; all rows that are left weigh the same",
    "rejected": "worse answers; loratune learns from answers, not from preferences",
    "tools": "the definitions of tools; the prompts do not show them",
    "functions": "the definitions of functions; the prompts do not show them",
    "images": "pictures; only texts are learned from",
    "image": "pictures; only texts are learned from",
    "audio": "sound; only texts are learned from",
    "split": "the part a row belongs to; write one file for each part, and name them train, val and test",
}
# Columns that describe a row and are never an answer.
METADATA_COLUMNS = {
    "url",
    "source",
    "timestamp",
    "date",
    "created_at",
    "lang",
    "language",
    "split",
    "category",
    "title",
    "meta",
}
KTO_LABEL = "label"  # true: a good answer, false: a bad one (Ethayarajh et al., 2024)


@dataclass(frozen=True)
class ColumnChoice:
    """Which column of a file is which, or why that cannot be said."""

    columns: dict[str, str]  # our field: the file's column
    problems: list[Problem]  # why the rows cannot be read; each names its remedy


def choose_columns(rows: Sequence[FileRow], names: Sequence[str], asked: Mapping[str, str]) -> ColumnChoice:
    """Choose the columns that the user names, else those with the usual names, whatever their capitals.

    No column is taken twice.
    """
    asked, problems = resolve_requested(names, asked, tuple(SYNONYMS))
    chosen = dict(asked)
    for role, synonyms in SYNONYMS.items():
        if role not in chosen:
            candidates = find_columns(synonyms, names, taken=chosen.values())
            if role == "instruction":
                candidates = sort_varying_first(rows, candidates) or find_columns(
                    ("input",), names, taken=chosen.values()
                )
            if candidates:
                chosen[role] = candidates[0]
    if missing := [role for role in REQUIRED if role not in chosen]:
        problems += explain_missing(rows, names, chosen, missing)
    return ColumnChoice(chosen, problems)


def resolve_requested(
    names: Sequence[str], asked: Mapping[str, str], roles: Sequence[str], *, form: str = ""
) -> tuple[dict[str, str], list[Problem]]:
    """Return the columns that the user names, in the file's own spelling, and what is wrong with them."""
    problems = [
        Problem(f"unknown{form}; the left side is one of {', '.join(roles)}", "columns", value=role)
        for role in asked
        if role not in roles
    ]
    resolved: dict[str, str] = {}
    for role, name in asked.items():
        known = [name] if name in names else find_columns((normalize_name(name),), names)
        if not known:
            problems.append(Problem(f"no column {name!r} for `columns` {role}={name}"))
        elif known[0] in resolved.values():
            other = next(other for other, taken in resolved.items() if taken == known[0])
            text = f"this column is the {other}, too; each column has one role"
            problems.append(Problem(text, "columns", value=f"{role}={name}"))
        elif role in roles:
            resolved[role] = known[0]
    return resolved, problems


def find_columns(synonyms: Sequence[str], names: Sequence[str], taken=()) -> list[str]:
    """Return the columns with these names, in the order of `synonyms`; an exact match comes first."""
    free = [name for name in names if name not in taken]
    return [
        name
        for synonym in synonyms
        for name in sorted(free, key=lambda name: name != synonym)
        if normalize_name(name) == synonym
    ]


def normalize_name(name: str) -> str:
    return str(name).strip().casefold().replace(" ", "_").replace("-", "_")


def sort_varying_first(rows: Sequence[FileRow], candidates: Sequence[str]) -> list[str]:
    """Move columns with the same text in every row to the end: such a text is no question."""
    return sorted(candidates, key=lambda name: is_constant(rows, name))


def is_constant(rows: Sequence[FileRow], name: str) -> bool:
    return len(rows) > 1 and all(row.values.get(name) == rows[0].values.get(name) for row in rows)


def list_unused_columns(names: Sequence[str], chosen: Mapping[str, str]) -> list[str]:
    return [name for name in names if name not in chosen.values() and name != "meta"]


def collect_unused_warnings(rows: Sequence[FileRow], unused: Sequence[str]) -> list[str]:
    """Return a sentence for each unused column that changes what a row means, unless it is empty."""
    filled = [name for name in unused if any(not is_blank(row.values.get(name)) for row in rows)]
    return [
        f"the column {name!r} is not used: {reason}"
        for name in filled
        if (reason := explain_unused(rows, name))
    ]


def explain_unused(rows: Sequence[FileRow], name: str) -> str:
    if normalize_name(name) in MEANINGFUL_COLUMNS:
        return MEANINGFUL_COLUMNS[normalize_name(name)]
    roles = [role for role in ("instruction", "input", "output") if normalize_name(name) in SYNONYMS[role]]
    if not roles:
        return ""
    if is_constant(rows, name):
        return "it has the same text in every row"
    return f"another column is the {roles[0]}; choose with `columns` {roles[0]}=NAME"


def explain_missing(
    rows: Sequence[FileRow], names: Sequence[str], chosen: Mapping[str, str], missing: Sequence[str]
) -> list[Problem]:
    """Say why there is no instruction or output: the form that the rows have, or which columns to name."""
    if known := explain_unreadable_form(rows, names):
        return [Problem(known)]
    free = [name for name in names if name not in chosen.values() and can_be_text(rows, name)]
    if len(free) >= len(missing):
        return [
            Problem(f"no column for {role}", remedy=f"say which it is with `columns` {role}=NAME")
            for role in missing
        ]
    return [
        Problem(
            f"no column for {' and '.join(missing)}, and too few others that could be",
            remedy="each row needs an instruction and an output, or messages",
        )
    ]


def can_be_text(rows: Sequence[FileRow], name: str) -> bool:
    values = (row.values.get(name) for row in rows)
    return normalize_name(name) not in METADATA_COLUMNS and isinstance(
        next(filter(None, values), None), str | int | float
    )


def explain_unreadable_form(rows: Sequence[FileRow], names: Sequence[str]) -> str:
    """Name a form that cannot be read, and what to write instead; "" for rows of no known form."""
    known = {normalize_name(name): name for name in names}
    if "input_ids" in known:
        return "these rows are tokens already (input_ids); give the texts that they were made from"
    if {"chosen", "rejected"} <= known.keys():
        return explain_preferences(rows, known)
    if "answers" in known and any(isinstance(row.values.get(known["answers"]), dict) for row in rows):
        return (
            "these rows have SQuAD's form: answers is an object with a list of texts; "
            'write answers["text"][0] into a column named answer (a row without a text has no answer; leave '
            "it out)"
        )
    others = [
        name
        for name in names
        if normalize_name(name) not in METADATA_COLUMNS
        and normalize_name(name) not in ("text", "id", "group")
    ]
    if "text" in known and not any(can_be_text(rows, name) for name in others):
        return (
            "these rows are plain text (a column text): nothing says which part is the answer to learn; "
            "write each row as an instruction and an output, or as messages"
        )
    return ""


def explain_preferences(rows: Sequence[FileRow], known: Mapping[str, str]) -> str:
    """Say how to learn from pairs of a better and a worse answer.

    They have TRL's form, with texts or messages, or HH's, in which each is a whole dialogue in one text.
    """
    what = "these rows are preferences (chosen, rejected), and loratune learns from answers"
    chosen: Any = next((row.values.get(known["chosen"]) for row in rows), None)
    if isinstance(chosen, list):
        return f"{what}; to learn the chosen ones: `columns` messages={known['chosen']}"
    if any(name in known for name in SYNONYMS["instruction"]):
        return f"{what}; to learn the chosen ones: `columns` output={known['chosen']}"
    return (
        f"{what}; where each is a whole dialogue (HH's form), split the chosen text at its last "
        "'\\n\\nAssistant:': "
        "what stands before it is the instruction, what follows the output"
    )
