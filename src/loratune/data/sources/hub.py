"""Data sets on the Hugging Face hub: which of their files are read, and for which split."""

import re
from collections.abc import Mapping
from pathlib import Path

from loratune.data.sources.base import ON_THE_HUB, DataSet, SourceOptions, Survey
from loratune.data.sources.files import CheckRecord, accept_record, load_files
from loratune.data.sources.loaded import SourceData
from loratune.data.sources.readers import DATA_SUFFIXES
from loratune.data.sources.split_names import detect_splits
from loratune.errors import UserError
from loratune.system import hub

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(/[\w. /-]+)?", re.ASCII)
# Files beside the data that describe it.
METADATA_FILES = frozenset(
    f"{name}.json"
    for name in (
        "config",
        "dataset_dict",
        "dataset_info",
        "dataset_infos",
        "metadata",
        "prepare_report",
        "state",
    )
)


class HubSource:
    """Any data set on the hub, by `owner/name` or `owner/name/folder`."""

    shipped = False
    takes_columns = True
    gathers_files = False
    settings = ()

    def recognizes(self, name: str) -> bool:
        return bool(HUB_NAME.fullmatch(name))

    def find_problem(self, name: str) -> str:
        return ""

    def load(self, data_set: DataSet, options: SourceOptions) -> list[SourceData]:
        return load_hub_dataset(data_set.name, options.columns, options.skip_bad, check=options.check)

    def survey(self, data_set: DataSet, options: SourceOptions) -> Survey:
        return Survey(data_set.name, ON_THE_HUB, rows=None)


def load_hub_dataset(
    name: str,
    columns: Mapping[str, str],
    skip_bad: bool = False,
    *,
    check: CheckRecord = accept_record,
) -> list[SourceData]:
    """Read a data set; files that are named train, validation or test stay separate splits."""
    files = download_dataset_files(name)
    by_split: dict[str | None, list[Path]] = {}
    for file, split in zip(files, detect_splits([file.name for file in files]), strict=True):
        by_split.setdefault(split, []).append(file)
    origin = f"{name} on {ON_THE_HUB}"
    # A data set with a single split is split like any other file.
    return [
        load_files(
            paths,
            columns,
            name,
            origin=origin,
            split=split or "train" if len(by_split) > 1 else None,
            skip_bad=skip_bad,
            check=check,
        )
        for split, paths in by_split.items()
    ]


def download_dataset_files(name: str) -> list[Path]:
    """Download the data files of `owner/name`, or of `owner/name/folder` where there are several folders.

    Returns:
        The files' paths on this machine.

    Raises:
        UserError: there are no data files, or several folders and none is named.
    """
    owner, title, folder = (*name.split("/", 2), "")[:3]
    repository = f"{owner}/{title}"
    if hub.is_hub_reachable():
        chosen = choose_files(hub.list_repository_files(repository, "dataset"), name, folder)
        root = hub.download(repository, chosen, "dataset")
    else:
        # Without the hub, use what an earlier download left in the cache.
        root = hub.download(repository, [f"*{kind}" for kind in DATA_SUFFIXES], "dataset")
        chosen = choose_files([path.relative_to(root).as_posix() for path in root.rglob("*")], name, folder)
    return [root / file for file in chosen]


def choose_files(files: list[str], name: str, folder: str) -> list[str]:
    """Choose the data files of one format and one folder among all files of a repository."""
    if outside := [file for file in files if ".." in file.split("/") or file.startswith("/") or "\\" in file]:
        raise UserError(
            f"it names a file outside of itself, {outside[0]!r}",
            setting="data",
            value=name,
            remedy="do not use it",
        )
    candidates = sorted(
        file
        for file in files
        if file.startswith(f"{folder}/" if folder else "") and not is_metadata_file(file)
    )
    by_format = {suffix: [file for file in candidates if file.endswith(suffix)] for suffix in DATA_SUFFIXES}
    chosen = next(filter(None, by_format.values()), [])
    if not chosen:
        place = f"there in {folder}" if folder else "there"
        raise UserError(f"no {', '.join(DATA_SUFFIXES)} files {place}", setting="data", value=name)
    folders = sorted({file.rpartition("/")[0] for file in chosen})
    if len(folders) > 1:
        choices = " ".join(f"{name}/{subfolder}" for subfolder in folders if subfolder)
        raise UserError("it has several parts", setting="data", value=name, remedy=f"choose one: {choices}")
    return chosen


def is_metadata_file(file: str) -> bool:
    return file.startswith(".") or file.rpartition("/")[2] in METADATA_FILES
