"""Results of reading a source: its records, and notes on how each file was read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from loratune.data.example import Record


@dataclass(frozen=True)
class FileNotes:
    """What was used of one of the user's files, and what was not."""

    file: str
    columns: dict[str, str]  # our field: the file's column
    unused: list[str]  # columns that are not used
    warnings: list[str] = field(default_factory=list)  # of what the user probably does not want
    counts: dict[str, int] = field(default_factory=dict)  # how parts of rows were handled, in words: how many
    # Place and problem of each row that was left out because the user allows it.
    bad_rows: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SourceData:
    """Records of one source; `split` is set if the source itself says which split they belong to."""

    name: str
    origin: str  # where they were read, in words
    records: list[Record]
    split: str | None = None  # train, val or test
    left_out: Mapping[str, int] = field(default_factory=dict)  # reason: rows that are not among the records
    files: Sequence[FileNotes] = ()
    # Whether the user holds these files out: then all rows stay, and similar rows elsewhere are removed.
    own: bool = False
