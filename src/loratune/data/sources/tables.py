"""Read CSV and TSV files; the delimiter and the quoting style are detected by trial.

The best style gives every row as many cells as the header. A file is first read as its name says, so that
semicolons or backslashes in the texts of an ordinary file change nothing.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loratune.data.bad_rows import BadRows
from loratune.errors import UserError
from loratune.system.read import read_text

# The likeliest first.
DELIMITERS = {".csv": ",;\t|", ".tsv": "\t,;|"}
MAX_CELL_LENGTH = 2**31 - 1  # Python's own limit is 131,072 characters
# Excel may name the delimiter on a line before the header.
NAMED_DELIMITER = re.compile(r'"?sep=([^"\r\n])"?(?:\r\n|\r|\n)', re.IGNORECASE)


@dataclass
class ParsedTable:
    """A file as parsed with one delimiter and style."""

    header: list[str] = field(default_factory=list)
    header_line: int = 1
    # The line on which each row ends, and its cells.
    rows: list[tuple[int, list[str]]] = field(default_factory=list)
    ragged: list[int] = field(default_factory=list)  # lines of rows with more or fewer cells than the header
    broken: tuple[int, str] | None = None  # the line of the row at which the parser gives up, and why

    def columns(self) -> int:
        """Count the columns up to the last one with a name."""
        return max((number for number, name in enumerate(self.header, 1) if name), default=0)

    def faults(self) -> tuple[bool, int]:
        return self.broken is not None, len(self.ragged)


def read_table_rows(path: Path, bad: BadRows) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line and the cells, by column, of each row.

    Rows without text and columns without a name are left out.

    Args:
        path: the file.
        bad: collects rows with too many or too few cells.

    Raises:
        UserError: the file cannot be parsed.
    """
    csv.field_size_limit(MAX_CELL_LENGTH)
    text = read_text(path)
    skipped_lines, delimiters = 0, DELIMITERS[path.suffix.lower()]
    if declared := NAMED_DELIMITER.match(text):
        skipped_lines, delimiters, text = 1, declared[1], text[declared.end() :]
    delimiter, table = parse_best(text, delimiters)
    if table.broken:
        line, problem = table.broken
        raise UserError(f"{path}, line {skipped_lines + line}: not valid CSV: {problem}")
    if repeated := [name for name, count in Counter(table.header).items() if name and count > 1]:
        where = f"{path}, line {skipped_lines + table.header_line}"
        raise UserError(
            f"{where}: the header names {', '.join(map(repr, repeated))} twice; rename one column"
        )
    remedy = (
        f"{path}: a cell with a {delimiter!r} or a line break in it must be in double quotes, as a "
        "spreadsheet saves it"
    )
    for line in table.ragged:
        problem = f"the row has more or fewer cells than the {table.columns()} columns of the header"
        bad.add(f"{path}, line {skipped_lines + line}", problem, remedy)
    for line, cells in table.rows:
        # Not strict, because a row may end before columns without a name.
        yield (
            skipped_lines + line,
            {name: cell for name, cell in zip(table.header, cells, strict=False) if name},
        )


def parse_best(text: str, delimiters: str) -> tuple[str, ParsedTable]:
    """Return the delimiter and table with the fewest faults; the first of equally good ones."""
    candidates = [
        one for one in delimiters if len(parse_table(text, one, header_only=True).header) > 1
    ] or delimiters[:1]
    best: tuple[str, ParsedTable] | None = None
    for style in (parse_spaced, parse_plain, parse_escaped, parse_unquoted):
        for delimiter in candidates:
            table = style(text, delimiter)
            if table and (best is None or table.faults() < best[1].faults()):
                best = delimiter, table
            if best and best[1].faults() == (False, 0):
                return best
    assert best is not None, "parse_plain always returns a table"
    return best


def parse_plain(text: str, delimiter: str) -> ParsedTable:
    """Parse a table in which quotes within a quoted cell are doubled."""
    return parse_table(text, delimiter)


def parse_spaced(text: str, delimiter: str) -> ParsedTable | None:
    """Parse a table with a space between delimiter and opening quote, as people write by hand."""
    # Programs write no such sequence elsewhere: they double quotes within quotes, and quote cells that hold
    # some.
    evidence = rf'(?:^|{re.escape(delimiter)}) +"(?!["\r\n]|{re.escape(delimiter)}|\Z)'
    if not re.search(evidence, text, re.MULTILINE):
        return None
    table = parse_table(text, delimiter, skipinitialspace=True)
    return None if any(table.faults()) else table


def parse_escaped(text: str, delimiter: str) -> ParsedTable | None:
    r"""Parse a table in which a backslash escapes quotes; others, as in \alpha, are part of the text."""
    if not re.search(rf'\\["{re.escape(delimiter)}]', text):
        return None
    special = {'"', "\\", delimiter, "\n", "\r"}
    escaped = re.sub(
        r"\\(.)", lambda pair: pair[0] if pair[1] in special else rf"\{pair[0]}", text, flags=re.DOTALL
    )
    return parse_table(escaped, delimiter, escapechar="\\")


def parse_unquoted(text: str, delimiter: str) -> ParsedTable | None:
    """Parse a table with tabs between cells, in which quotes have no meaning."""
    if delimiter != "\t":
        return None
    table = parse_table(text, delimiter, quoting=csv.QUOTE_NONE)
    # Cells in quotes show that the file does use quoting.
    quotes = any(len(cell) > 1 and cell[0] == cell[-1] == '"' for _, cells in table.rows for cell in cells)
    return None if quotes or any(table.faults()) else table


def parse_table(text: str, delimiter: str, header_only: bool = False, **style: Any) -> ParsedTable:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, **style)
    table = ParsedTable()
    first_line = 1  # of the next row, which may span several lines
    try:
        for cells in reader:
            first_line = reader.line_num + 1
            if not any(map(str.strip, cells)):
                continue
            if not table.header:
                table.header, table.header_line = [cell.strip() for cell in cells], reader.line_num
                columns = table.columns()
                if header_only:
                    break
                continue
            # A delimiter at the end of a row, or an empty cell beside the table.
            while len(cells) > columns and not cells[-1].strip():
                cells.pop()
            if columns <= len(cells) <= len(table.header):
                table.rows.append((reader.line_num, cells))
            else:
                table.ragged.append(reader.line_num)
    except csv.Error as error:
        open_quote = "unexpected end" in str(error)
        table.broken = (
            first_line,
            "a quote that opens in this row is not closed" if open_quote else str(error),
        )
    return table
