"""What a name of a data set stands for: shipped data, files or folders of one's own, or a data set on the
hub.

What exists here, or looks like a path or a file's name, is never taken for a name on the hub: nobody is asked
for it.
"""

import json
import os
import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loratune.data.sources.hub import is_metadata_file
from loratune.data.sources.other_kinds import SPREADSHEETS
from loratune.data.sources.parts import detect_split, detect_splits, strip_split_name
from loratune.data.sources.readers import DATA_SUFFIXES, refuse_unreadable
from loratune.data.split import HELD_OUT
from loratune.errors import UserError
from loratune.system.atomic import convert_os_error
from loratune.system.read import open_regular_file
from loratune.tasks.finqa.questions import FILES as FINQA_FILES

SHIPPED = ("dolly", "finqa")
FINQA_FIELDS = {"pre_text", "table"}  # of every entry of FinQA's own files
HEAD_BYTES = 2**20  # bytes; FinQA's pages are shorter by far
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(/[\w. /-]+)?", re.ASCII)
FILE_SUFFIX = re.compile(r"\.([A-Za-z]\w*|7z)", re.ASCII)  # not the .5 of "owner/data-2.5"
# What `datasets` leaves in a folder with save_to_disk, and how to make files of it.
SAVED_TO_DISK = {
    "dataset_dict.json": "[part.to_json(name + '.jsonl') for name, part in "
    "load_from_disk({folder!r}).items()]",
    "state.json": "load_from_disk({folder!r}).to_json({name!r})",
}


@dataclass(frozen=True)
class UserFile:
    path: Path
    part: str | None  # val or test where the file is for that alone
    by_name: bool = False  # whether only the file's name says so


@dataclass
class DataSource:
    """One data set. `kind` is shipped, finqa (a folder with FinQA's own files), hub, or own: files of the
    user's.
    """

    kind: str
    name: str
    files: list[UserFile] = field(default_factory=list)

    def paths(self) -> dict[str | None, list[Path]]:
        """The files for each part."""
        return {
            part: [file.path for file in self.files if file.part == part]
            for part in {file.part: 0 for file in self.files}
        }


def detect_source_kind(name: str) -> str:
    """shipped, finqa, own, hub, or "" where a name can be none of these."""
    if name in SHIPPED:
        return "shipped"
    if is_folder(name):
        return "finqa" if is_finqa(Path(name)) else "own"
    if os.path.exists(name) or looks_like_path(name):
        return "own"
    return "hub" if HUB_NAME.fullmatch(name) else ""


def is_folder(name: str | Path) -> bool:
    # Unlike Path.is_dir, this takes any text.
    return os.path.isdir(name) and Path(name).suffix.lower() not in DATA_SUFFIXES


def looks_like_path(name: str) -> bool:
    """Whether a name of something that is not here can only be meant as a path."""
    if name.startswith(("/", "./", "../", "~")) or "\\" in name or re.match(r"[A-Za-z]:", name):
        return True
    return bool(FILE_SUFFIX.fullmatch(os.path.splitext(name)[1])) or get_first_folder(name) != ""


def get_first_folder(name: str) -> str:
    """The first part of a name with slashes where it is a folder here, else ""."""
    first, slash, _ = name.partition("/")
    return first if slash and os.path.isdir(first) else ""


def is_finqa(folder: Path) -> bool:
    """Whether a file that has the name of one of FinQA's is in FinQA's form; people call their own files so,
    too.
    """
    return any(read_first_fields(folder / file) >= FINQA_FIELDS for file in FINQA_FILES.values())


def read_first_fields(path: Path) -> set[str]:
    """The names in the first object of a JSON file; none where there is no file, or no object near its
    beginning.
    """
    try:
        with open_regular_file(path) as file:
            head = file.read(HEAD_BYTES).decode(errors="ignore")
        return set(json.JSONDecoder().raw_decode(head, head.index("{"))[0])
    except (UserError, ValueError, RecursionError):
        return set()


def find_source_problem(name: str) -> str:
    """What is wrong with a name, before anything is read whole; "" if nothing is."""
    kind = detect_source_kind(name)
    if kind == "own":
        return find_file_problem(name)
    if kind == "finqa":
        needed = ", ".join(FINQA_FILES.values())
        missing = ", ".join(file for file in FINQA_FILES.values() if not os.path.isfile(Path(name) / file))
        return f"{name}: {missing} missing; of FinQA the folder must hold its own {needed}" if missing else ""
    if not kind:
        return (
            f"{name or repr(name)}: neither dolly nor finqa, nor a file ({', '.join(DATA_SUFFIXES)}) or "
            "folder that is there, "
            "nor a Hugging Face data set (owner/name)"
        )
    return ""


def find_file_problem(name: str) -> str:
    """What is wrong with a file, or with a folder of files; "" if nothing is."""
    try:
        for path in list_user_files(name):
            refuse_unreadable(path)
    except UserError as error:
        return str(error)
    return ""


def list_user_files(name: str) -> list[Path]:
    """The file of that name, or the data files in the folder of that name."""
    path = Path(name)
    if is_folder(name):
        return list_data_files(path)
    if not os.path.exists(name) and path.suffix.lower() not in DATA_SUFFIXES:
        raise UserError(f"{name}: there is no such file or folder{explain_missing_path(name)}")
    return [path]


def explain_missing_path(name: str) -> str:
    if name.startswith("~"):
        return "; ~ is not replaced here, write the home folder out"
    if HUB_NAME.fullmatch(name) and (first := get_first_folder(name)):
        return (
            f" ({first} is a folder here; for a Hugging Face data set of that name, start in another folder)"
        )
    return ""


def list_data_files(folder: Path) -> list[Path]:
    """The data files of a folder, without those in folders below it. Raises UserError when there are none."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise convert_os_error(error, folder) from error
    if files := [path for path in entries if is_data_file(path)]:
        return files
    for mark, code in SAVED_TO_DISK.items():
        if (folder / mark).is_file():
            code = "from datasets import load_from_disk; " + code.format(
                folder=str(folder), name=f"{folder.resolve().name}.jsonl"
            )
            command = shlex.join(["python", "-c", code])
            raise UserError(
                f"{folder}: saved by `datasets` with save_to_disk; make .jsonl of it, and name that: "
                f"{command}"
            )
    below = [
        str(entry)
        for entry in entries
        if entry.is_dir() and not entry.is_symlink() and any(map(is_data_file, list_folder(entry)))
    ]
    remedy = f"; name one of its folders: {' '.join(map(shlex.quote, below))}" if below else ""
    raise UserError(f"{folder}: no {', '.join(DATA_SUFFIXES)} files in it{remedy}")


def list_folder(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def is_data_file(path: Path) -> bool:
    return path.suffix.lower() in DATA_SUFFIXES and not is_metadata_file(path.name) and not path.is_dir()


def list_unread_spreadsheets(names: Sequence[str]) -> list[Path]:
    """Spreadsheets in folders whose other files are read."""
    folders = [Path(name) for name in names if detect_source_kind(name) == "own" and is_folder(name)]
    return [
        path for folder in folders for path in sorted(folder.iterdir()) if path.suffix.lower() in SPREADSHEETS
    ]


def resolve_sources(
    data: Sequence[str], val: Sequence[str] = (), test: Sequence[str] = ()
) -> list[DataSource]:
    """The data sets that `data` names, in that order, and the user's own files for validation and test.

    A file in `data` whose name says val or test is for that alone where there is something else to train on.
    Files in `val` or `test` are for that, also where `data` names them, too. Raises UserError when a file is
    for both parts, or nothing is left to train on.
    """
    asked: dict[Path, UserFile] = {}
    for part, names in (("val", val), ("test", test)):
        for path in (path for name in names for path in list_user_files(name)):
            if asked.setdefault(path.resolve(), UserFile(path, part)).part != part:
                raise UserError(
                    f"{path}: it is named for validation and for the test; name another file for one of them"
                )
    kinds = {name: detect_source_kind(name) for name in data}
    own = {
        name: [path for path in list_user_files(name) if path.resolve() not in asked]
        for name in kinds
        if kinds[name] == "own"
    }
    distinct = {path.resolve(): path for paths in own.values() for path in paths}
    parts = detect_splits([path.name for path in distinct.values()], beside=len(own) < len(kinds))
    found = {
        resolved: UserFile(path, part if part in HELD_OUT else None, by_name=True)
        for (resolved, path), part in zip(distinct.items(), parts, strict=True)
    }
    if len(own) == len(kinds) and all(file.part for file in found.values()):
        told = ", ".join(str(file.path) for file in (*found.values(), *asked.values()))
        raise UserError(f"{told}: named for validation or the test alone; name a file to train on, too")
    folders = {Path(name).resolve() for name in (*own, *val, *test) if is_folder(name)}
    parted = any(file.part for file in (*found.values(), *asked.values()))
    places: list[DataSource] = []
    sets: dict[str, DataSource] = {}

    def put(file: UserFile) -> None:
        title = choose_title(file.path, folders, parted)
        if title not in sets:
            places.append(sets.setdefault(title, DataSource("own", title)))
        sets[title].files.append(file)

    for name, kind in kinds.items():
        if kind != "own":
            places.append(DataSource(kind, name))
        for path in own.get(name, []):
            if file := found.pop(path.resolve(), None):
                put(file)
    for file in asked.values():
        put(file)
    return places


def choose_title(path: Path, folders: Collection[Path], parted: bool) -> str:
    """The name of a file's data set: that of its folder, or its own, without the word that says which part it
    is.
    """
    folder = path.resolve().parent
    title = path.stem
    if folder in folders:
        title = folder.name or path.stem
    elif parted and detect_split(path.name):
        title = strip_split_name(path.stem) or folder.name or path.stem
    # Rows of FinQA and Dolly are scored by these names.
    return f"own {title}" if parted and title in SHIPPED else title
