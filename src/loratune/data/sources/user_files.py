"""The user's own files as a data source."""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from loratune.data.sources.base import DataSet, SourceOptions, Survey, survey_records
from loratune.data.sources.files import load_files
from loratune.data.sources.loaded import SourceData
from loratune.data.sources.paths import find_file_problem, is_folder, looks_like_path

MAX_FILES_NAMED = 4  # of one data set; the rest are only counted


class UserFilesSource:
    """The user's own files and folders."""

    shipped = False
    takes_columns = True
    gathers_files = True
    settings = ()

    def recognizes(self, name: str) -> bool:
        return is_folder(name) or os.path.exists(name) or looks_like_path(name)

    def find_problem(self, name: str) -> str:
        return find_file_problem(name)

    def load(self, data_set: DataSet, options: SourceOptions) -> list[SourceData]:
        """Read the files for each split, and mark those that are held out."""
        loaded = []
        for split, paths in data_set.paths().items():
            source_data = load_files(
                paths,
                options.columns,
                data_set.name,
                origin=format_paths(paths),
                split=split,
                skip_bad=options.skip_bad,
                check=options.check,
            )
            loaded.append(replace(source_data, own=split is not None))
        return loaded

    def survey(self, data_set: DataSet, options: SourceOptions) -> Survey:
        return survey_records(*self.load(data_set, options))


def format_paths(paths: Iterable[Path]) -> str:
    """Name the first files and count the rest."""
    names = list(map(str, paths))
    unnamed = len(names) - MAX_FILES_NAMED
    return ", ".join(names[:MAX_FILES_NAMED]) + (f" and {unnamed} more" if unnamed > 0 else "")
