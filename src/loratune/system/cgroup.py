"""Read the limits that a container, a service or a batch system sets (Linux control groups).

The machine's own figures do not show them.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
UNLIMITED = 2**60  # version 1 writes about 2^63 where there is no limit


@dataclass(frozen=True)
class MemoryLimit:
    total: int  # bytes
    free: int  # bytes that are not used; the file cache counts as free


def read_memory_limit() -> MemoryLimit | None:
    """Return the tightest limit of this process's group and those around it; None where there is none."""
    limits = [
        limit for folder in list_cgroup_folders("memory") if (limit := read_folder_memory_limit(folder))
    ]
    return min(limits, key=lambda limit: limit.free, default=None)


def read_folder_memory_limit(folder: Path) -> MemoryLimit | None:
    names = (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for limit, usage, cache in names:
        with suppress(OSError, ValueError):  # of another version, or "max"
            total = int((folder / limit).read_text())
            words = (folder / "memory.stat").read_text().split()
            statistics = dict(zip(words[::2], words[1::2], strict=True))
            used = int((folder / usage).read_text()) - int(statistics.get(cache, 0))
            return MemoryLimit(total, max(total - used, 0)) if total < UNLIMITED else None
    return None


def read_core_limit() -> float | None:
    """Return how many cores' time this process's group may use, such as 1.5; None: no limit."""
    return min(
        (limit for folder in list_cgroup_folders("cpu") if (limit := read_folder_core_limit(folder))),
        default=None,
    )


def read_folder_core_limit(folder: Path) -> float | None:
    with suppress(OSError, ValueError):  # version 2; "max" is not a number
        quota, period = map(int, (folder / "cpu.max").read_text().split())
        return quota / period
    with suppress(OSError, ValueError):
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return quota / int((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    return None


def list_cgroup_folders(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's group and the groups around it.

    Version 1 has a tree for each controller, version 2 one for all.
    """
    try:
        lines = OWN_CGROUP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            top = CGROUP_ROOT / controller if controllers else CGROUP_ROOT
            group = top / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))
