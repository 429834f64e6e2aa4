"""Read the user's own files: convert rows, in columns or as chats, to records.

Every problem is named with its file, its line or row, and its field.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loratune.data.bad_rows import BadRows, raise_problems
from loratune.data.example import Record, compute_content_id
from loratune.data.json_values import describe_type, is_serializable, read_text_field
from loratune.data.sources.chats import ALL_WEIGHT_0, ChatColumns, convert_chat, find_chat_columns
from loratune.data.sources.columns import (
    KTO_LABEL,
    choose_columns,
    collect_unused_warnings,
    find_columns,
    list_unused_columns,
    resolve_requested,
)
from loratune.data.sources.loaded import FileNotes, SourceData
from loratune.data.sources.readers import FileRow, read_rows
from loratune.data.sources.values import is_placeholder, read_cell
from loratune.errors import Problem, UserError

# The columns beside a chat that may be named; its messages hold everything else.
CHAT_COLUMN_ROLES = ("messages", "group", "id")
BAD_ANSWER = "label is false: a bad answer"
UNUSABLE = "rows that cannot be used (`skip_bad`)"
NO_INPUT = "inputs that only say that there is none (such as N/A), taken as none"
NO_OUTPUT = "outputs that only say that there is none (such as N/A), learned as they are"
REMEDY = (
    "correct these rows, or leave them out with `skip_bad`, which counts them and lists them in "
    "prepare_report.json"
)
NO_USABLE_ROWS = "it has no other rows"


def load_files(
    paths: Sequence[Path],
    columns: Mapping[str, str],
    name: str,
    *,
    origin: str,
    split: str | None = None,
    skip_bad: bool = False,
) -> SourceData:
    """Read the records of one data set from one or more files.

    Args:
        paths: the files.
        columns: the user's columns by their roles; columns with the usual names need not be given.
        name: of the data set.
        origin: where the files are, in words.
        split: train, val or test where all rows are for that.
        skip_bad: leave out, count and list single rows that cannot be used.

    Raises:
        UserError: a file cannot be read; it names all problems of that file, up to a limit.
    """
    records: list[Record] = []
    left_out: Counter[str] = Counter()
    files = []
    for path in paths:
        from_file, reasons, notes = read_file(path, columns, name, skip_bad=skip_bad)
        records += from_file
        left_out += reasons  # unlike `update`, this drops counts of zero
        files.append(notes)
    return SourceData(name, origin, records, split, left_out, files)


def read_file_records(path: Path, columns: Mapping[str, str], source: str) -> list[Record]:
    return read_file(path, columns, source)[0]


@dataclass(frozen=True)
class ColumnTable:
    """The rows of a file, and the names of their columns."""

    path: Path
    rows: Sequence[FileRow]
    names: Sequence[str]


def read_file(
    path: Path, columns: Mapping[str, str], source: str, *, skip_bad: bool = False
) -> tuple[list[Record], Counter[str], FileNotes]:
    """Return a file's records, how many rows were left out and why, and which columns were used."""
    bad = BadRows(skip_bad)
    rows = read_rows(path, bad)
    if not rows:
        raise_problems(bad.problems, f"{path}: {NO_USABLE_ROWS}")
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    label = find_kto_label(rows, [name for name in names if name not in columns.values()])
    good = [row for row in rows if not label or parse_bool(row.values[label])]
    if not good:
        raise UserError(
            f"the column {label!r} marks all its {len(rows):,} answers as bad; there is nothing to learn",
            value=path,
        )
    table = ColumnTable(path, good, names)
    if chat := find_chat_columns(table.rows, table.names, columns):
        records, left_out, notes = read_chats(table, chat, columns, source=source, bad=bad)
    else:
        records, notes = read_columns(table, columns, source=source, bad=bad)
        left_out = Counter()
    if not records:
        raise_problems(bad.problems, f"{path}: {NO_USABLE_ROWS}")
    bad.refuse(f"{path}: {REMEDY}")
    left_out += Counter({BAD_ANSWER: len(rows) - len(good), UNUSABLE: len(bad.problems)})
    if label:
        warning = (
            f"the column {label!r} marks good and bad answers: the {len(rows) - len(good):,} bad ones are "
            "left out"
        )
        notes = replace(notes, warnings=[*notes.warnings, warning])
    return records, left_out, replace(notes, bad_rows=bad.problems)


def read_chats(
    table: ColumnTable, chat: ChatColumns, columns: Mapping[str, str], *, source: str, bad: BadRows
) -> tuple[list[Record], Counter[str], FileNotes]:
    requested, problems = resolve_requested(table.names, columns, CHAT_COLUMN_ROLES, form=" for messages")
    raise_column_problems(table, problems)
    chat = replace(chat, answer=requested.pop("messages", chat.answer))
    usual = {role: names[0] for role in ("group", "id") if (names := find_columns((role,), table.names))}
    roles = usual | requested
    chat_columns = (
        {"prompt": chat.prompt, "completion": chat.answer} if chat.prompt else {"messages": chat.answer}
    )
    counts: Counter[str] = Counter()

    def convert(values: dict) -> Record | None:
        record = convert_chat(values, chat, source, counts=counts)
        return record and add_id_and_group(record, values, roles)

    converted = convert_rows(table.rows, convert, bad)
    records = [record for record in converted if record]
    unused = list_unused_columns(table.names, chat_columns | roles)
    notes = FileNotes(
        str(table.path),
        chat_columns | roles,
        unused,
        collect_unused_warnings(table.rows, unused),
        dict(+counts),
    )
    return records, Counter({ALL_WEIGHT_0: len(converted) - len(records)}), notes


def read_columns(
    table: ColumnTable, columns: Mapping[str, str], *, source: str, bad: BadRows
) -> tuple[list[Record], FileNotes]:
    choice = choose_columns(table.rows, table.names, columns)
    raise_column_problems(table, choice.problems)
    unused = list_unused_columns(table.names, choice.columns)
    warnings = collect_unused_warnings(table.rows, unused)
    counts: Counter[str] = Counter()
    records = convert_rows(
        table.rows, lambda values: convert_row(values, choice.columns, source, counts=counts), bad
    )
    if counts[NO_OUTPUT]:
        warnings.append(f"{counts[NO_OUTPUT]:,} {NO_OUTPUT}")
    return records, FileNotes(str(table.path), choice.columns, unused, warnings, dict(+counts))


def raise_column_problems(table: ColumnTable, problems: Sequence[Problem]) -> None:
    """Raise UserError if there are problems, those of the setting `columns` first, then the file's own."""
    if problems:
        in_order = sorted(problems, key=lambda problem: (not problem.setting, problem.render()))
        names = Problem(f"its columns are {', '.join(map(str, table.names))}")
        raise UserError(
            *(
                problem if problem.setting else replace(problem, value=table.path)
                for problem in [*in_order, names]
            )
        )


def find_kto_label(rows: Sequence[FileRow], names: Sequence[str]) -> str:
    """Return the column that marks each answer as good or bad, as in KTO's data; "" where there is none."""
    for name in find_columns((KTO_LABEL,), names):
        if all(parse_bool(row.values.get(name)) is not None for row in rows):
            return name
    return ""


def parse_bool(value: Any) -> bool | None:
    """Return true or false, also from a text, as in a CSV file; None for anything else."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().casefold())
    return value if isinstance(value, bool) else None


def convert_rows(rows: Sequence[FileRow], convert: Callable[[dict], Any], bad: BadRows | None = None) -> list:
    """Convert every row. Those for which `convert` raises ValueError go to `bad`.

    Raises:
        UserError: there are such rows and no `bad` to collect them.
    """
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


def convert_row(values: dict, roles: Mapping[str, str], source: str, *, counts: Counter[str]) -> Record:
    """Convert a row to a record.

    Texts are not stripped, because leading spaces and line ends matter in code. The row's `meta` is kept, but
    not its `source`: that is the data set's name, by which reports and scores are grouped.
    """
    instruction, output = (read_cell(values, roles[role]) for role in ("instruction", "output"))
    text = read_cell(values, roles["input"], required=False) if "input" in roles else ""
    if is_placeholder(text):
        counts[NO_INPUT] += 1
        text = ""
    counts[NO_OUTPUT] += is_placeholder(output)
    return add_id_and_group(
        Record(instruction, text, output, "", source, meta=read_meta(values)), values, roles
    )


def add_id_and_group(record: Record, values: dict, roles: Mapping[str, str]) -> Record:
    """Return the record with the row's group and its id, or one computed from its content."""
    own_id, group = (read_label(values, roles[role]) if role in roles else "" for role in ("id", "group"))
    return replace(
        record, id=own_id or compute_content_id(record.instruction, record.input, record.output), group=group
    )


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


def read_meta(values: dict) -> dict:
    """Return the record's `meta`; a column of that name that is no JSON object is ignored."""
    meta = values.get("meta")
    return meta if isinstance(meta, dict) and is_serializable(meta) else {}
