"""Container limits in both versions of control groups, from simulated files."""

import psutil
import pytest

from loratune.system import cgroup, hardware, memory

GB = 10**9


@pytest.fixture
def group(tmp_path, monkeypatch):
    """Write files below a made-up /sys/fs/cgroup; `own` is what /proc/self/cgroup says."""
    monkeypatch.setattr(cgroup, "CGROUP_ROOT", tmp_path / "groups")
    monkeypatch.setattr(cgroup, "OWN_CGROUP", tmp_path / "own")

    def write(own: str, files: dict[str, str]) -> None:
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")

    return write


VERSION_2 = {
    "memory.max": str(4 * GB),
    "memory.current": str(3 * GB),
    "memory.stat": f"anon 5\ninactive_file {GB}",
    "cpu.max": "150000 100000",
}
VERSION_1 = {
    "memory/memory.limit_in_bytes": str(4 * GB),
    "memory/memory.usage_in_bytes": str(3 * GB),
    "memory/memory.stat": f"inactive_file 7\ntotal_inactive_file {GB}",
    "cpu/cpu.cfs_quota_us": "150000",
    "cpu/cpu.cfs_period_us": "100000",
}


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("0::/\n", VERSION_2),
        (
            "0::/outer/inner\n",
            {f"outer/{name}": text for name, text in VERSION_2.items()},
        ),  # the limit of a group around
        ("5:memory:/not/seen/from/here\n4:cpu,cpuacct:/not/seen\n0::/\n", VERSION_1),  # as in a container
    ],
)
def test_cgroup_limits_are_found(group, own, files):
    group(own, files)
    assert cgroup.read_memory_limit() == cgroup.MemoryLimit(total=4 * GB, free=2 * GB)
    assert cgroup.read_core_limit() == 1.5


def test_tightest_limit_counts(group):
    inner = {
        "in/memory.max": str(GB),
        "in/memory.current": "0",
        "in/memory.stat": "",
        "in/cpu.max": "max 100000",
    }
    group("0::/in\n", {**VERSION_2, **inner})
    assert cgroup.read_memory_limit() == cgroup.MemoryLimit(total=GB, free=GB)
    assert cgroup.read_core_limit() == 1.5


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("0::/\n", {"memory.max": "max", "memory.current": "5", "memory.stat": "", "cpu.max": "max 100000"}),
        (
            "5:memory:/\n4:cpu:/\n",
            {**VERSION_1, "memory/memory.limit_in_bytes": str(2**63 - 4096), "cpu/cpu.cfs_quota_us": "-1"},
        ),
        ("0::/\n", {}),
    ],
)
def test_no_limit_gives_none(group, own, files):
    group(own, files)
    assert cgroup.read_memory_limit() is None and cgroup.read_core_limit() is None


def test_used_up_memory_leaves_nothing_free(group):
    group("0::/\n", {**VERSION_2, "memory.current": str(6 * GB)})
    assert cgroup.read_memory_limit().free == 0


def test_threads_and_memory_respect_the_limits(group, monkeypatch):
    monkeypatch.setattr(hardware, "list_allowed_cores", lambda: set(range(16)))
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 16 if logical else 8)
    group("0::/\n", {})
    assert hardware.count_usable_cores() == 8
    assert memory.available_memory() > 0
    group("0::/\n", {**VERSION_2, "memory.max": "1000", "memory.current": "400", "memory.stat": ""})
    assert hardware.count_usable_cores() == 2  # 1.5, rounded up
    assert memory.available_memory() == 600
