"""Read the user's own files: convert rows, in columns or as chats, to records.

Every problem is named with its file, its line or row, and its field.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loratune.data.bad_rows import BadRows, raise_problems
from loratune.data.example import Record
from loratune.data.sources.chats import ALL_WEIGHT_0, ChatColumns, convert_chat, find_chat_columns
from loratune.data.sources.columns import (
    KTO_LABEL,
    LABEL_ROLES,
    SYNONYMS,
    choose_columns,
    collect_unused_warnings,
    find_columns,
    find_text_column,
    list_unused_columns,
    resolve_requested,
)
from loratune.data.sources.loaded import FileNotes, SourceData
from loratune.data.sources.readers import FileRow, read_rows
from loratune.data.sources.rows import NO_OUTPUT, add_id_and_group, convert_row, convert_text
from loratune.errors import Problem, UserError

# The columns beside a chat that may be named; its messages hold everything else.
CHAT_COLUMN_ROLES = ("messages", "system", "tools", "group", "id")
USUAL_BESIDE_CHATS = {
    "system": ("system", "system_prompt"),
    "tools": ("tools", "functions"),
    "group": ("group",),
    "id": ("id",),
}
TEXT_COLUMN_ROLES = ("text", "group", "id")
PLAIN_TEXT = "plain text (column {!r}): whole texts are learned; there is no prompt"
BAD_ANSWER = "label is false: a bad answer"
UNUSABLE = "rows that cannot be used (`skip_bad`)"
REMEDY = (
    "correct these rows, or leave them out with `skip_bad`, which counts them and lists them in "
    "prepare_report.json"
)
NO_USABLE_ROWS = "it has no other rows"
CheckRecord = Callable[[Record], None]  # raises ValueError for a record that cannot be used


def accept_record(record: Record) -> None:
    """Accept any record."""


def load_files(
    paths: Sequence[Path],
    columns: Mapping[str, str],
    name: str,
    *,
    origin: str,
    split: str | None = None,
    skip_bad: bool = False,
    check: CheckRecord = accept_record,
) -> SourceData:
    """Read the records of one data set from one or more files.

    Args:
        paths: the files.
        columns: the user's columns by their roles; columns with the usual names need not be given.
        name: of the data set.
        origin: where the files are, in words.
        split: train, val or test where all rows are for that.
        skip_bad: leave out, count and list single rows that cannot be used.
        check: raises ValueError for a record that cannot be used.

    Raises:
        UserError: a file cannot be read; it names all problems of that file, up to a limit.
    """
    records: list[Record] = []
    left_out: Counter[str] = Counter()
    files = []
    for path in paths:
        from_file, reasons, notes = read_file(path, columns, name, skip_bad=skip_bad, check=check)
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
    check: CheckRecord = accept_record

    def convert(self, convert: Callable[[dict], Record | None], bad: BadRows) -> list[Record | None]:
        """Convert and check every row; those that raise ValueError go to `bad`."""

        def convert_and_check(values: dict) -> Record | None:
            if record := convert(values):
                self.check(record)
            return record

        return convert_rows(self.rows, convert_and_check, bad)


def read_file(
    path: Path,
    columns: Mapping[str, str],
    source: str,
    *,
    skip_bad: bool = False,
    check: CheckRecord = accept_record,
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
    records: list[Record] = []
    left_out = Counter({BAD_ANSWER: len(rows) - len(good)})
    notes = FileNotes(str(path), {}, [])
    for table in split_by_form(ColumnTable(path, good, names, check), columns):
        read = read_table(table, columns, source=source, bad=bad)
        records += read.records
        left_out += read.left_out
        notes = merge_notes(notes, read.notes)
    if not records:
        raise_problems(bad.problems, f"{path}: {NO_USABLE_ROWS}")
    bad.refuse(f"{path}: {REMEDY}")
    left_out += Counter({UNUSABLE: len(bad.problems)})
    if label:
        warning = (
            f"the column {label!r} marks good and bad answers: the {len(rows) - len(good):,} bad ones are "
            "left out"
        )
        notes = replace(notes, warnings=[*notes.warnings, warning])
    return records, left_out, replace(notes, bad_rows=bad.problems)


def split_by_form(table: ColumnTable, columns: Mapping[str, str]) -> list[ColumnTable]:
    """Split rows that have the fields of different forms, as in a file that loratune wrote.

    A row with fields of no form belongs to the form of the first row that has one. Where the user names
    columns, all rows have the same form.
    """
    if columns.keys() - LABEL_ROLES:
        return [table]
    chat = find_chat_columns(table.rows, table.names, columns)
    fields = [list_fields(row) for row in table.rows]
    forms = {names: tell_form(names, chat) for names in dict.fromkeys(fields)}
    default = next(filter(None, forms.values()), "chat" if chat else "columns")
    by_form: dict[str, list[FileRow]] = {}
    names_of: dict[str, dict[str, None]] = defaultdict(dict)
    for row, names in zip(table.rows, fields, strict=True):
        form = forms[names] or default
        by_form.setdefault(form, []).append(row)
        names_of[form].update(dict.fromkeys(names))
    if len(by_form) == 1 and (not chat or default == "chat"):
        return [table]
    return [replace(table, rows=rows, names=list(names_of[form])) for form, rows in by_form.items()]


def list_fields(row: FileRow) -> tuple[str, ...]:
    """Return the names of a row's fields that are there; in Parquet those of other forms are null."""
    return tuple(name for name, value in row.values.items() if value is not None and value != [])


def tell_form(names: Sequence[str], chat: ChatColumns | None) -> str:
    """Tell which form a row with these fields has: chat, columns or text; "" for none."""
    if chat and {chat.prompt, chat.answer} & set(names):
        return "chat"
    if find_columns((*SYNONYMS["instruction"], *SYNONYMS["output"]), names):
        return "columns"
    return "text" if find_columns(("text",), names) else ""


def merge_notes(one: FileNotes, other: FileNotes) -> FileNotes:
    """Merge the notes on rows of two forms in one file."""
    columns = one.columns | other.columns
    unused = dict.fromkeys([*one.unused, *other.unused])
    return replace(
        one,
        columns=columns,
        unused=[name for name in unused if name not in columns.values()],
        warnings=[*one.warnings, *other.warnings],
        counts=dict(Counter(one.counts) + Counter(other.counts)),
    )


@dataclass(frozen=True)
class ReadTable:
    """The records of rows of one form, how many rows were left out and why, and what was used."""

    records: list[Record]
    left_out: Counter[str]
    notes: FileNotes


def read_table(table: ColumnTable, columns: Mapping[str, str], *, source: str, bad: BadRows) -> ReadTable:
    """Convert rows of one form: chats, plain text, or columns."""
    if chat := find_chat_columns(table.rows, table.names, columns):
        return read_chats(table, chat, columns, source=source, bad=bad)
    if text := find_text_column(table.rows, table.names, columns):
        return read_texts(table, text, columns, source=source, bad=bad)
    return read_columns(table, columns, source=source, bad=bad)


def read_chats(
    table: ColumnTable, chat: ChatColumns, columns: Mapping[str, str], *, source: str, bad: BadRows
) -> ReadTable:
    requested = resolve_for_form(table, columns, CHAT_COLUMN_ROLES, form="messages")
    chat_columns = (
        {"prompt": chat.prompt, "completion": chat.answer}
        if chat.prompt
        else {"messages": requested.pop("messages", chat.answer)}
    )
    roles = find_usual(table, USUAL_BESIDE_CHATS) | requested
    chat = replace(
        chat,
        answer=chat_columns.get("messages", chat.answer),
        system=roles.get("system", ""),
        tools=roles.get("tools", ""),
    )
    counts: Counter[str] = Counter()

    def convert(values: dict) -> Record | None:
        record = convert_chat(values, chat, source, counts=counts)
        return record and add_id_and_group(record, values, roles)

    converted = table.convert(convert, bad)
    records = [record for record in converted if record]
    notes = note_columns(table, chat_columns | roles, counts=counts)
    return ReadTable(records, Counter({ALL_WEIGHT_0: len(converted) - len(records)}), notes)


def read_texts(
    table: ColumnTable, text: str, columns: Mapping[str, str], *, source: str, bad: BadRows
) -> ReadTable:
    requested = resolve_for_form(table, columns, TEXT_COLUMN_ROLES, form="plain text")
    roles = {"text": text} | find_usual(table, {role: (role,) for role in sorted(LABEL_ROLES)}) | requested
    converted = table.convert(lambda values: convert_text(values, roles, source), bad)
    records = list(filter(None, converted))
    notes = note_columns(table, roles)
    return ReadTable(records, Counter(), replace(notes, warnings=[PLAIN_TEXT.format(text), *notes.warnings]))


def read_columns(table: ColumnTable, columns: Mapping[str, str], *, source: str, bad: BadRows) -> ReadTable:
    choice = choose_columns(table.rows, table.names, columns)
    raise_column_problems(table, choice.problems)
    counts: Counter[str] = Counter()
    converted = table.convert(lambda values: convert_row(values, choice.columns, source, counts=counts), bad)
    records = list(filter(None, converted))
    notes = note_columns(table, choice.columns, counts=counts)
    if counts[NO_OUTPUT]:
        notes.warnings.append(f"{counts[NO_OUTPUT]:,} {NO_OUTPUT}")
    return ReadTable(records, Counter(), notes)


def resolve_for_form(
    table: ColumnTable, columns: Mapping[str, str], roles: Sequence[str], *, form: str
) -> dict[str, str]:
    """Return the columns that the user names, in the file's spelling; raise UserError if one does not fit."""
    requested, problems = resolve_requested(table.names, columns, roles, form=f" for {form}")
    raise_column_problems(table, problems)
    return requested


def find_usual(table: ColumnTable, synonyms: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Find the columns with the usual names of some roles."""
    return {role: found[0] for role, names in synonyms.items() if (found := find_columns(names, table.names))}


def note_columns(
    table: ColumnTable, chosen: Mapping[str, str], *, counts: Mapping[str, int] | None = None
) -> FileNotes:
    """Note which columns were used, and warn of those that are not and change what a row means."""
    unused = list_unused_columns(table.names, chosen)
    warnings = collect_unused_warnings(table.rows, unused)
    return FileNotes(str(table.path), dict(chosen), unused, warnings, dict(+Counter(counts or {})))


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
