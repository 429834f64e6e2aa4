"""Choose the columns of a user's file that are the instruction, the input and the output, or plain text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loratune.data.sources.readers import FileRow
from loratune.data.sources.values import is_blank
from loratune.errors import Problem

# Usual names of columns for each field, the likeliest first. Fields choose in this order, and no column is
# chosen twice.
SYNONYMS = {
    "instruction": ("instruction", "prompt", "question", "query"),
    "output": ("output", "completion", "response", "answer"),
    "input": ("input", "context"),
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "group": ("group",),
    "id": ("id",),
}
REQUIRED = ("instruction", "output")
LABEL_ROLES = {"group", "id"}  # what rows of every form may have
# Columns that change what a row means but are not used.
MEANINGFUL_COLUMNS = {
    "system": "the system prompt of a row; to keep it, write it as the first of the row's messages",
    "system_prompt": "the system prompt of a row; to keep it, write it as the first of the row's messages",
    "history": "earlier turns of a conversation; to keep them, write them as messages",
    "weight": "the weights of rows; all remaining rows weigh the same",
    "rejected": "worse answers; loratune learns from answers, not from preferences",
    "tools": "the definitions of tools; the prompts do not show them",
    "functions": "the definitions of functions; the prompts do not show them",
    "images": "pictures; only text is learned from",
    "image": "pictures; only text is learned from",
    "audio": "sound; only text is learned from",
    "split": "the split of a row; write one file for each split, and name them train, val and test",
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
    """The columns of a file by their roles, or why they cannot be chosen."""

    columns: dict[str, str]  # our field: the file's column
    problems: list[Problem]  # why the rows cannot be read; each names its remedy


def choose_columns(
    rows: Sequence[FileRow], names: Sequence[str], requested: Mapping[str, str]
) -> ColumnChoice:
    """Choose the columns that the user names, else those with the usual names, in any case.

    No column is chosen twice.
    """
    resolved, problems = resolve_requested(names, requested, tuple(SYNONYMS))
    chosen = dict(resolved)
    for role, synonyms in SYNONYMS.items():
        if role not in chosen:
            candidates = find_columns(synonyms, names, excluded=chosen.values())
            if role == "instruction":
                candidates = sort_varying_first(rows, candidates) or find_columns(
                    ("input",), names, excluded=chosen.values()
                )
            if candidates:
                chosen[role] = candidates[0]
    if missing := [role for role in REQUIRED if role not in chosen]:
        problems += explain_missing(rows, names, chosen, missing=missing)
    return ColumnChoice(chosen, problems)


def find_text_column(rows: Sequence[FileRow], names: Sequence[str], requested: Mapping[str, str]) -> str:
    """Return the column of plain text: the one that the user names, or `text` if no other column holds text.

    Returns:
        The column; "" where the rows have another form.
    """
    if "text" in requested:
        return requested["text"]
    found = find_columns(("text",), names)
    if not found or requested.keys() - LABEL_ROLES or explain_unreadable_form(rows, names):
        return ""
    others = (
        name
        for name in names
        if name not in (found[0], *requested.values()) and normalize_name(name) not in LABEL_ROLES
    )
    return "" if any(can_be_text(rows, name) for name in others) else found[0]


def resolve_requested(
    names: Sequence[str], requested: Mapping[str, str], roles: Sequence[str], *, form: str = ""
) -> tuple[dict[str, str], list[Problem]]:
    """Return the columns that the user names, in the file's own spelling, and what is wrong with them."""
    problems = [
        Problem(f"unknown{form}; the left side is one of {', '.join(roles)}", "columns", value=role)
        for role in requested
        if role not in roles
    ]
    resolved: dict[str, str] = {}
    for role, name in requested.items():
        matches = [name] if name in names else find_columns((normalize_name(name),), names)
        if not matches:
            problems.append(Problem(f"no column {name!r} for `columns` {role}={name}"))
        elif matches[0] in resolved.values():
            other = next(other for other, column in resolved.items() if column == matches[0])
            text = f"this column is also the {other}; each column has one role"
            problems.append(Problem(text, "columns", value=f"{role}={name}"))
        elif role in roles:
            resolved[role] = matches[0]
    return resolved, problems


def find_columns(synonyms: Sequence[str], names: Sequence[str], excluded=()) -> list[str]:
    """Return the columns with these names, in the order of `synonyms`; an exact match comes first."""
    free = [name for name in names if name not in excluded]
    return [
        name
        for synonym in synonyms
        for name in sorted(free, key=lambda name: name != synonym)
        if normalize_name(name) == synonym
    ]


def normalize_name(name: str) -> str:
    return str(name).strip().casefold().replace(" ", "_").replace("-", "_")


def sort_varying_first(rows: Sequence[FileRow], candidates: Sequence[str]) -> list[str]:
    """Sort columns with the same text in every row to the end, because such a text is no question."""
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
    rows: Sequence[FileRow], names: Sequence[str], chosen: Mapping[str, str], *, missing: Sequence[str]
) -> list[Problem]:
    """Say why there is no instruction or output: the form that the rows have, or which columns to name."""
    if reason := explain_unreadable_form(rows, names):
        return [Problem(reason)]
    free = [name for name in names if name not in chosen.values() and can_be_text(rows, name)]
    if len(free) >= len(missing):
        texts = find_columns(("text",), free)
        whole = f", or learn whole texts with `columns` text={texts[0]}" if texts else ""
        return [
            Problem(f"no column for {role}", remedy=f"say which it is with `columns` {role}=NAME{whole}")
            for role in missing
        ]
    return [
        Problem(
            f"no column for {' and '.join(missing)}, and too few others that could be",
            remedy="each row needs an instruction and an output, or messages, or a text",
        )
    ]


def can_be_text(rows: Sequence[FileRow], name: str) -> bool:
    values = (row.values.get(name) for row in rows)
    return normalize_name(name) not in METADATA_COLUMNS and isinstance(
        next(filter(None, values), None), str | int | float
    )


def explain_unreadable_form(rows: Sequence[FileRow], names: Sequence[str]) -> str:
    """Name a form that cannot be read, and what to write instead; "" for rows of no known form."""
    columns = {normalize_name(name): name for name in names}
    if "input_ids" in columns:
        return "these rows are already tokenised (input_ids); give the texts that they were made from"
    if {"chosen", "rejected"} <= columns.keys():
        return explain_preferences(rows, columns)
    if "answers" in columns and any(isinstance(row.values.get(columns["answers"]), dict) for row in rows):
        return (
            "these rows have SQuAD's form: answers is an object with a list of texts; "
            'write answers["text"][0] into a column named answer (a row without a text has no answer; leave '
            "it out)"
        )
    return ""


def explain_preferences(rows: Sequence[FileRow], columns: Mapping[str, str]) -> str:
    """Explain how to learn from pairs of a better and a worse answer.

    Such rows are in TRL's form, with texts or messages, or in HH's, where each answer is a whole dialogue.
    """
    form = "these rows are preferences (chosen, rejected), and loratune learns from answers"
    chosen: Any = next((row.values.get(columns["chosen"]) for row in rows), None)
    if isinstance(chosen, list):
        return f"{form}; to learn the chosen ones: `columns` messages={columns['chosen']}"
    if any(name in columns for name in SYNONYMS["instruction"]):
        return f"{form}; to learn the chosen ones: `columns` output={columns['chosen']}"
    return (
        f"{form}; where each is a whole dialogue (HH's form), split the chosen text at its last "
        "'\\n\\nAssistant:': "
        "what stands before it is the instruction, what follows the output"
    )
