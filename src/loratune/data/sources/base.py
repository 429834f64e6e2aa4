"""The interface of a data source: which names it recognises, and how it reads rows.

A new source is a class with this interface and a line in `tasks.registry.SOURCES`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from loratune.data.example import Record
from loratune.data.sources.loaded import SourceData

ON_THE_HUB = "the Hugging Face hub"


@dataclass(frozen=True)
class UserFile:
    """A file of the user's own, and the split that it is for."""

    path: Path
    split: str | None  # val or test if the file is for that split alone
    by_name: bool = False  # whether the split comes from the file's name alone


@dataclass
class DataSet:
    """One data set that the user names: where it comes from, and the user's own files in it."""

    source: "DataSource"
    name: str
    files: list[UserFile] = field(default_factory=list)

    def paths(self) -> dict[str | None, list[Path]]:
        """Return the files for each split; those for None are still to be split."""
        return {
            split: [file.path for file in self.files if file.split == split]
            for split in {file.split: 0 for file in self.files}
        }


@dataclass(frozen=True)
class SourceOptions:
    """How data sets are read; each source uses the options that concern it.

    Args:
        count_tokens: returns the number of tokens of each text; its second argument says what the texts are,
            for the progress bar.
        from_hub: whether shipped data sets come from the hub, not from the copy in the package.
        columns: the user's columns by their roles, such as {"instruction": "question"}.
        skip_bad: whether unusable rows are left out and counted instead of refused.
        check: raises ValueError for a record that cannot be used, as a chat that the template cannot show.
        settings: the values of single sources' own settings, by the names in their `settings`.
    """

    count_tokens: Callable[[Sequence[str], str], list[int]]
    from_hub: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    skip_bad: bool = False
    check: Callable[[Record], None] = lambda record: None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Survey:
    """What a data set contains, and how long preparing its records will take."""

    name: str
    origin: str
    rows: int | None  # None if they are not on this machine yet
    seconds: float = 0.0  # to make all its records, once it is read
    sample: list[Record] = field(default_factory=list)


class DataSource(Protocol):
    """A kind of data set that `prepare` can read."""

    @property
    def shipped(self) -> bool:
        """Whether the package holds a copy, which the user names by the source's name."""
        ...

    @property
    def takes_columns(self) -> bool:
        """Whether the user can say which column has which role."""
        ...

    @property
    def gathers_files(self) -> bool:
        """Whether the source reads the user's own files, which may be for one split alone."""
        ...

    @property
    def settings(self) -> Sequence[str]:
        """The names of the values that it uses from `SourceOptions.settings`."""
        ...

    def recognizes(self, name: str) -> bool:
        """Tell whether the user's name stands for a data set of this kind."""
        ...

    def find_problem(self, name: str) -> str:
        """Return what is wrong with such a name, without reading whole files; "" if nothing is."""
        ...

    def load(self, data_set: DataSet, options: SourceOptions) -> list[SourceData]:
        """Read the records, one `SourceData` for each split that the source has.

        Raises:
            UserError: the data cannot be read or has no rows that can be used.
        """
        ...

    def survey(self, data_set: DataSet, options: SourceOptions) -> Survey:
        """Survey what `load` would read, without a download."""
        ...


def survey_records(*loaded: SourceData) -> Survey:
    """Survey a source whose records are made as fast as they are read, from its loaded data."""
    records = [record for one in loaded for record in one.records]
    return Survey(loaded[0].name, ", ".join(one.origin for one in loaded), len(records), sample=records)
