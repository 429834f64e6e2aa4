"""Paths of the user's data: resolve files and folders to data files, and explain problems with them.

A name that exists here, or looks like a path or a file's name, is never looked up on the hub.
"""

import json
import os
import re
import shlex
from pathlib import Path

from loratune.data.sources.hub import HUB_NAME, is_metadata_file
from loratune.data.sources.readers import DATA_SUFFIXES, refuse_unreadable
from loratune.errors import UserError
from loratune.system.atomic import convert_os_error
from loratune.system.read import open_regular_file

HEAD_BYTES = 2**20  # the part of a file that is searched for its first object
FILE_SUFFIX = re.compile(r"\.([A-Za-z]\w*|7z)", re.ASCII)  # not the .5 of "owner/data-2.5"
# The files that mark a folder that `datasets` saved with save_to_disk, and code that converts it.
SAVED_TO_DISK = {
    "dataset_dict.json": "[part.to_json(name + '.jsonl') for name, part in "
    "load_from_disk({folder!r}).items()]",
    "state.json": "load_from_disk({folder!r}).to_json({name!r})",
}


def is_folder(name: str | Path) -> bool:
    # Unlike Path.is_dir, os.path.isdir accepts any text.
    return os.path.isdir(name) and Path(name).suffix.lower() not in DATA_SUFFIXES


def looks_like_path(name: str) -> bool:
    """Tell whether a name that does not exist here can only be a path."""
    if name.startswith(("/", "./", "../", "~")) or "\\" in name or re.match(r"[A-Za-z]:", name):
        return True
    return bool(FILE_SUFFIX.fullmatch(os.path.splitext(name)[1])) or get_first_folder(name) != ""


def get_first_folder(name: str) -> str:
    """Return the first part of a name with slashes where it is a folder here, else ""."""
    first, slash, _ = name.partition("/")
    return first if slash and os.path.isdir(first) else ""


def read_first_fields(path: Path) -> set[str]:
    """Return the keys of the first object in a JSON file; none if there is no object near its start."""
    try:
        with open_regular_file(path) as file:
            head = file.read(HEAD_BYTES).decode(errors="ignore")
        return set(json.JSONDecoder().raw_decode(head, head.index("{"))[0])
    except (UserError, ValueError, RecursionError):
        return set()


def find_file_problem(name: str) -> str:
    """Return what is wrong with a file, or with a folder of files; "" if nothing is."""
    try:
        for path in list_user_files(name):
            refuse_unreadable(path)
    except UserError as error:
        return str(error)
    return ""


def list_user_files(name: str) -> list[Path]:
    """Return the file of that name, or the data files in the folder of that name."""
    path = Path(name)
    if is_folder(name):
        return list_data_files(path)
    if not os.path.exists(name) and path.suffix.lower() not in DATA_SUFFIXES:
        raise UserError(f"{name}: there is no such file or folder{explain_missing_path(name)}")
    return [path]


def explain_missing_path(name: str) -> str:
    if name.startswith("~"):
        return "; ~ is not expanded here, write the home folder out"
    if HUB_NAME.fullmatch(name) and (first := get_first_folder(name)):
        return (
            f" ({first} is a folder here; for a Hugging Face data set of that name, start in another folder)"
        )
    return ""


def list_data_files(folder: Path) -> list[Path]:
    """Return the data files of a folder, without those in folders below it.

    Raises:
        UserError: there are none.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise convert_os_error(error, folder) from error
    if files := [path for path in entries if is_data_file(path)]:
        return files
    for marker, code in SAVED_TO_DISK.items():
        if (folder / marker).is_file():
            code = "from datasets import load_from_disk; " + code.format(
                folder=str(folder), name=f"{folder.resolve().name}.jsonl"
            )
            command = shlex.join(["python", "-c", code])
            raise UserError(
                f"{folder}: saved by `datasets` with save_to_disk; make .jsonl of it, and name that: "
                f"{command}"
            )
    subfolders = [
        str(entry)
        for entry in entries
        if entry.is_dir() and not entry.is_symlink() and any(map(is_data_file, list_folder(entry)))
    ]
    remedy = f"; name one of its folders: {' '.join(map(shlex.quote, subfolders))}" if subfolders else ""
    raise UserError(f"{folder}: no {', '.join(DATA_SUFFIXES)} files in it{remedy}")


def list_folder(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def is_data_file(path: Path) -> bool:
    return path.suffix.lower() in DATA_SUFFIXES and not is_metadata_file(path.name) and not path.is_dir()
