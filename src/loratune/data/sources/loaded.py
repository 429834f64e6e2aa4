"""Loaded: the records of one source, and what is known about how they were read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from loratune.data.example import Record


@dataclass(frozen=True)
class FileNotes:
    """What was taken from one file of the user's, and what was not."""

    file: str
    columns: dict[str, str]  # our field: the file's column
    unused: list[str]  # columns that nothing is taken from
    warnings: list[str] = field(default_factory=list)  # of what is probably not what the user wants
    counts: dict[str, int] = field(default_factory=dict)  # what became of parts of rows, in words: how many
    bad_rows: list[str] = field(
        default_factory=list
    )  # left out by the user's wish: place and problem of each


@dataclass(frozen=True)
class SourceData:
    """Records of one source. `split` is set where the source itself says which part they belong to."""

    name: str
    origin: str  # where they were read, in words
    records: list[Record]
    split: str | None = None  # train, val or test
    left_out: Mapping[str, int] = field(default_factory=dict)  # reason: rows that could not become records
    files: Sequence[FileNotes] = ()
    own: bool = False  # whether it is a file that the user holds out: it stays whole, and other rows give way
