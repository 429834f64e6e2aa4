"""Resolve the user's names to data sets, and their files to splits."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from loratune.data.sources.base import DataSet, DataSource, UserFile
from loratune.data.sources.paths import is_folder, list_user_files
from loratune.data.sources.readers import DATA_SUFFIXES
from loratune.data.sources.split_names import detect_split, detect_splits, strip_split_name
from loratune.data.sources.unsupported_files import SPREADSHEETS
from loratune.data.split import HELD_OUT
from loratune.errors import UserError

Sources = Mapping[str, DataSource]  # by name; the first one that recognises a name reads it


def find_source(name: str, sources: Sources) -> DataSource | None:
    """Return the first source that recognises a name; None where none does."""
    return next((source for source in sources.values() if source.recognizes(name)), None)


def list_shipped(sources: Sources) -> list[str]:
    return [name for name, source in sources.items() if source.shipped]


def find_source_problem(name: str, sources: Sources) -> str:
    """Return what is wrong with a name, without reading whole files; "" if nothing is."""
    if source := find_source(name, sources):
        return source.find_problem(name)
    return (
        f"{name or repr(name)}: neither {' nor '.join(list_shipped(sources))}, nor a file "
        f"({', '.join(DATA_SUFFIXES)}) or folder that is there, nor a Hugging Face data set (owner/name)"
    )


def list_unread_spreadsheets(folders: Sequence[str]) -> list[Path]:
    """Return the spreadsheets in folders whose other files are read."""
    return [
        path
        for folder in folders
        if is_folder(folder)
        for path in sorted(Path(folder).iterdir())
        if path.suffix.lower() in SPREADSHEETS
    ]


def resolve_data_sets(
    data: Sequence[str], val: Sequence[str] = (), test: Sequence[str] = (), *, sources: Sources
) -> list[DataSet]:
    """Return the data sets that `data` names, in that order, with the user's own files for val and test.

    A file in `data` whose name says val or test is for that split alone if there is something else to train
    on. A file in `val` or `test` is for that split, even if `data` names it as well.

    Raises:
        UserError: a file is for both splits, or nothing is left to train on.
    """
    held_out: dict[Path, UserFile] = {}
    for split, names in (("val", val), ("test", test)):
        for path in (path for name in names for path in list_user_files(name)):
            if held_out.setdefault(path.resolve(), UserFile(path, split)).split != split:
                raise UserError(
                    f"{path}: it is named for validation and for the test; name another file for one of them"
                )
    named = {name: source for name in data if (source := find_source(name, sources))}
    user_paths = {
        name: [path for path in list_user_files(name) if path.resolve() not in held_out]
        for name, source in named.items()
        if source.gathers_files
    }
    distinct = {path.resolve(): path for paths in user_paths.values() for path in paths}
    splits = detect_splits([path.name for path in distinct.values()], beside=len(user_paths) < len(named))
    files = {
        resolved: UserFile(path, split if split in HELD_OUT else None, by_name=True)
        for (resolved, path), split in zip(distinct.items(), splits, strict=True)
    }
    if len(user_paths) == len(named) and all(file.split for file in files.values()):
        paths = ", ".join(str(file.path) for file in (*files.values(), *held_out.values()))
        raise UserError(f"{paths}: named for validation or the test alone; name a file to train on, too")
    folders = {Path(name).resolve() for name in (*user_paths, *val, *test) if is_folder(name)}
    has_splits = any(file.split for file in (*files.values(), *held_out.values()))
    reserved = list_shipped(sources)
    data_sets: list[DataSet] = []
    by_title: dict[str, DataSet] = {}

    def add_file(file: UserFile, source: DataSource) -> None:
        title = choose_title(file.path, folders, has_splits, reserved=reserved)
        if title not in by_title:
            data_sets.append(by_title.setdefault(title, DataSet(source, title)))
        by_title[title].files.append(file)

    for name, source in named.items():
        if not source.gathers_files:
            data_sets.append(DataSet(source, name))
        for path in user_paths.get(name, []):
            if file := files.pop(path.resolve(), None):
                add_file(file, source)
    user_files = next(source for source in sources.values() if source.gathers_files)
    for file in held_out.values():
        add_file(file, user_files)
    return data_sets


def choose_title(
    path: Path, folders: Collection[Path], has_splits: bool, *, reserved: Collection[str]
) -> str:
    """Name a file's data set after its folder or itself, without the word that says which split it is.

    Args:
        path: the file.
        folders: the folders of which the user named all files.
        has_splits: whether some files are for one split alone.
        reserved: names of shipped data sets, by which their rows are scored.
    """
    folder = path.resolve().parent
    title = path.stem
    if folder in folders:
        title = folder.name or path.stem
    elif has_splits and detect_split(path.name):
        title = strip_split_name(path.stem) or folder.name or path.stem
    return f"own {title}" if has_splits and title in reserved else title
