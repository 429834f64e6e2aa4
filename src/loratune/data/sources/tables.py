"""CSV and TSV files: which delimiter and which way of quoting a table has, found by trying.

The reading under which every row has as many cells as the header is the right one. An ordinary file is read
first as what its name says, so that semicolons or backslashes in its texts change nothing.
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
# Excel names the delimiter so, on a line before the header.
NAMED_DELIMITER = re.compile(r'"?sep=([^"\r\n])"?(?:\r\n|\r|\n)', re.IGNORECASE)


@dataclass
class ParsedTable:
    """What one way of reading makes of a file."""

    header: list[str] = field(default_factory=list)
    header_line: int = 1
    rows: list[tuple[int, list[str]]] = field(
        default_factory=list
    )  # the line on which a row ends, and its cells
    ragged: list[int] = field(
        default_factory=list
    )  # lines of rows that have not the header's number of cells
    broken: tuple[int, str] | None = None  # the line of the row at which the parser gives up, and why

    def columns(self) -> int:
        """The number of columns up to the last one that has a name."""
        return max((number for number, name in enumerate(self.header, 1) if name), default=0)

    def faults(self) -> tuple[bool, int]:
        return self.broken is not None, len(self.ragged)


def read_table_rows(path: Path, bad: BadRows) -> Iterator[tuple[int, dict[str, str]]]:
    """The line and the cells by column of each row; rows without any text are none, columns without a name
    are left out.

    Raises UserError where the file cannot be parsed as a whole; rows with too many or too few cells go to
    `bad`.
    """
    csv.field_size_limit(MAX_CELL_LENGTH)
    text = read_text(path)
    before, delimiters = 0, DELIMITERS[path.suffix.lower()]
    if named := NAMED_DELIMITER.match(text):
        before, delimiters, text = 1, named[1], text[named.end() :]
    delimiter, table = parse_best(text, delimiters)
    if table.broken:
        line, problem = table.broken
        raise UserError(f"{path}, line {before + line}: not valid CSV: {problem}")
    if twice := [name for name, count in Counter(table.header).items() if name and count > 1]:
        where = f"{path}, line {before + table.header_line}"
        raise UserError(f"{where}: the header names {', '.join(map(repr, twice))} twice; rename one column")
    remedy = (
        f"{path}: a cell with a {delimiter!r} or a line break in it must stand in double quotes, as a "
        "spreadsheet saves it"
    )
    for line in table.ragged:
        problem = f"the row has not as many cells as the {table.columns()} columns of the header"
        bad.add(f"{path}, line {before + line}", problem, remedy)
    for line, cells in table.rows:
        # A row may end before columns that have no name.
        yield before + line, {name: cell for name, cell in zip(table.header, cells, strict=False) if name}


def parse_best(text: str, delimiters: str) -> tuple[str, ParsedTable]:
    """The delimiter, and the reading with the fewest faults; of equals the first."""
    possible = [
        one for one in delimiters if len(parse_table(text, one, header_only=True).header) > 1
    ] or delimiters[:1]
    best: tuple[str, ParsedTable] | None = None
    for style in (parse_spaced, parse_plain, parse_escaped, parse_unquoted):
        for delimiter in possible:
            table = style(text, delimiter)
            if table and (best is None or table.faults() < best[1].faults()):
                best = delimiter, table
            if best and best[1].faults() == (False, 0):
                return best
    assert best is not None, "a plain reading is always one"
    return best


def parse_plain(text: str, delimiter: str) -> ParsedTable:
    """Quotes in a quoted cell are doubled."""
    return parse_table(text, delimiter)


def parse_spaced(text: str, delimiter: str) -> ParsedTable | None:
    """As people write by hand, a space between the delimiter and the opening quote."""
    # No program writes this in any other place: it doubles quotes inside of quotes, and quotes cells that
    # have some.
    evidence = rf'(?:^|{re.escape(delimiter)}) +"(?!["\r\n]|{re.escape(delimiter)}|\Z)'
    if not re.search(evidence, text, re.MULTILINE):
        return None
    table = parse_table(text, delimiter, skipinitialspace=True)
    return None if any(table.faults()) else table


def parse_escaped(text: str, delimiter: str) -> ParsedTable | None:
    r"""Quotes are escaped with a backslash; a backslash before any other letter, as in \n or \alpha, is one
    of the text.
    """
    if not re.search(rf'\\["{re.escape(delimiter)}]', text):
        return None
    special = {'"', "\\", delimiter, "\n", "\r"}
    kept = re.sub(
        r"\\(.)", lambda pair: pair[0] if pair[1] in special else rf"\{pair[0]}", text, flags=re.DOTALL
    )
    return parse_table(kept, delimiter, escapechar="\\")


def parse_unquoted(text: str, delimiter: str) -> ParsedTable | None:
    """Tabs between cells, and a quote is a letter like any other."""
    if delimiter != "\t":
        return None
    table = parse_table(text, delimiter, quoting=csv.QUOTE_NONE)
    # Where a cell stands in quotes the file does use them, and they are no part of the text.
    quotes = any(len(cell) > 1 and cell[0] == cell[-1] == '"' for _, cells in table.rows for cell in cells)
    return None if quotes or any(table.faults()) else table


def parse_table(text: str, delimiter: str, header_only: bool = False, **style: Any) -> ParsedTable:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, **style)
    table = ParsedTable()
    first_line = 1  # of the row that is read next; a row may have several
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
