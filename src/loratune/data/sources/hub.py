"""Data sets on the Hugging Face hub: which of their files to take, and for which part."""

from pathlib import Path

from loratune.data.sources.files import load_files
from loratune.data.sources.loaded import Loaded
from loratune.data.sources.parts import parts_of
from loratune.data.sources.readers import KINDS
from loratune.errors import UserError
from loratune.system import hub

# Files beside the data that tell about it.
DESCRIPTIONS = frozenset(
    f"{name}.json" for name in ("config", "dataset_dict", "dataset_info", "dataset_infos", "metadata", "prepare_report", "state")
)


def load_dataset(name: str, columns: dict[str, str], skip_bad: bool = False) -> list[Loaded]:
    """Any data set with known columns; where its files are named train, validation or test, these parts stay apart."""
    files = dataset_files(name)
    parts: dict[str | None, list[Path]] = {}
    for file, part in zip(files, parts_of([file.name for file in files]), strict=True):
        parts.setdefault(part, []).append(file)
    origin = f"{name} on the Hugging Face hub"
    # With only one part there is nothing to keep apart; it is split like any other file.
    return [
        load_files(
            paths,
            columns,
            name,
            origin=origin,
            split=part or "train" if len(parts) > 1 else None,
            skip_bad=skip_bad,
        )
        for part, paths in parts.items()
    ]


def dataset_files(name: str) -> list[Path]:
    """Local paths of the data files of `owner/name` or, where a data set has several folders, `owner/name/folder`.

    Raises UserError when there are none, or several folders and none is named.
    """
    owner, title, folder = (*name.split("/", 2), "")[:3]
    repository = f"{owner}/{title}"
    if hub.answers():
        chosen = choose(hub.listing(repository, "dataset"), name, folder)
        root = hub.download(repository, chosen, "dataset")
    else:
        # Without the hub: what an earlier download left in the cache.
        root = hub.download(repository, [f"*{kind}" for kind in KINDS], "dataset")
        chosen = choose([path.relative_to(root).as_posix() for path in root.rglob("*")], name, folder)
    return [root / file for file in chosen]


def choose(files: list[str], name: str, folder: str) -> list[str]:
    if outside := [file for file in files if ".." in file.split("/") or file.startswith("/") or "\\" in file]:
        raise UserError(f"--data {name}: it names a file outside of itself, {outside[0]!r}; do not use it")
    inside = sorted(file for file in files if file.startswith(f"{folder}/" if folder else "") and not is_description(file))
    by_kind = {kind: [file for file in inside if file.endswith(kind)] for kind in KINDS}
    chosen = next((found for found in by_kind.values() if found), [])
    if not chosen:
        raise UserError(f"--data {name}: no {', '.join(KINDS)} files there" + (f" in {folder}" if folder else ""))
    folders = sorted({file.rpartition("/")[0] for file in chosen})
    if len(folders) > 1:
        raise UserError(
            f"--data {name}: it has several parts; choose one: " + " ".join(f"{name}/{part}" for part in folders if part)
        )
    return chosen


def is_description(file: str) -> bool:
    return file.startswith(".") or file.rpartition("/")[2] in DESCRIPTIONS
