"""Inspect and check the hardware: what the machine has, and what slows training down."""

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from loratune.doctor.finding import Finding, format_bytes
from loratune.system.cgroup import read_core_limit, read_memory_limit
from loratune.system.hardware import (
    Gpu,
    OtherPrograms,
    count_usable_cores,
    detect_gpu,
    processor_name,
    set_up_device,
    time_matmul,
    torch_build,
)
from loratune.system.memory import available_memory

MATMUL_SHAPE = 576, 1536  # widths of SmolLM2's MLP
MATMUL_FLOP = 2 * 512 * 576 * 1536
LOW_MEMORY = 7.4e9  # what a machine that is sold with 8 GB has at least
MIN_FREE_MEMORY = 3.2e9  # SmolLM2 in fp32
MAX_SWAP_SHARE = 0.1  # of the memory
SLOW_GOVERNOR = "powersave"
# With these drivers "powersave" still runs as fast as the load needs.
SELF_SCALING_DRIVERS = ("intel_pstate", "amd-pstate-epp", "amd_pstate_epp")
CPUFREQ_FOLDER = Path("/sys/devices/system/cpu/cpu0/cpufreq")
THREADS_VARIABLE, THREAD_LIMIT_VARIABLE = "OMP_NUM_THREADS", "OMP_THREAD_LIMIT"
AFFINITY_VARIABLES = ("GOMP_CPU_AFFINITY", "KMP_AFFINITY")


@dataclass(frozen=True)
class Hardware:
    """What the checks need to know about the machine."""

    processor: str
    cores: int  # physical ones, or logical ones where nobody knows which share a physical one
    topology_known: bool
    usable_cores: int  # those of them that this process may use
    limited_by_container: bool  # to less than the time of all cores
    threads: int
    memory: int  # most bytes that this process may have
    available_memory: int
    swap_used: int
    gpu: Gpu | None
    nvidia_driver: bool
    torch_build: str  # such as CUDA 13.0, or CPU
    fp32: float  # FLOP/s of a matrix product of the size that training computes
    bf16: float
    crowded: bool  # other programs want the same cores
    on_battery: bool
    governor: str  # of the processor's frequency, where it keeps it low
    variables: Mapping[str, str]  # environment variables that change how threads work


def inspect_hardware(threads: int, device: str) -> Hardware:
    """Inspect the hardware, which takes a second or two.

    Raises UserError where a GPU is asked for and there is none.
    """
    neighbours = OtherPrograms()
    import psutil
    import torch

    set_up_device(threads, device)
    physical = psutil.cpu_count(logical=False)
    cores = physical or psutil.cpu_count() or 1
    limit, memory = read_memory_limit(), psutil.virtual_memory().total
    fp32, bf16 = time_matmul(*MATMUL_SHAPE)
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return Hardware(
        processor=processor_name(),
        cores=cores,
        topology_known=physical is not None,
        usable_cores=count_usable_cores(),
        limited_by_container=(read_core_limit() or cores) < cores,
        threads=torch.get_num_threads(),
        memory=min(memory, limit.total) if limit else memory,
        available_memory=available_memory(),
        swap_used=psutil.swap_memory().used,
        gpu=detect_gpu(),
        nvidia_driver=has_nvidia_driver(),
        torch_build=torch_build(),
        fp32=MATMUL_FLOP / fp32,
        bf16=MATMUL_FLOP / bf16,
        crowded=neighbours.are_busy(torch.get_num_threads()),
        on_battery=battery is not None and not battery.power_plugged,
        governor=find_slow_governor(),
        variables={
            name: os.environ[name]
            for name in (THREADS_VARIABLE, THREAD_LIMIT_VARIABLE, *AFFINITY_VARIABLES)
            if name in os.environ
        },
    )


def has_nvidia_driver() -> bool:
    """Return whether an NVIDIA driver is installed and its GPUs are not hidden from torch."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and shutil.which("nvidia-smi") is not None


def find_slow_governor() -> str:
    """Return the governor that keeps the processor's frequency low; "" where none does or none is known."""
    try:
        governor, driver = (
            (CPUFREQ_FOLDER / name).read_text().strip() for name in ("scaling_governor", "scaling_driver")
        )
    except OSError:
        return ""
    return governor if governor == SLOW_GOVERNOR and driver not in SELF_SCALING_DRIVERS else ""


def check_cores(hardware: Hardware) -> Iterable[Finding]:
    cores = format_count(hardware.cores, "core")
    if not hardware.topology_known:
        cores = (
            f"{format_count(hardware.cores, 'logical core')} (the system does not say which share a "
            "physical one)"
        )
    found = f"{hardware.processor}, {cores}, {format_count(hardware.threads, 'thread')} used"
    if hardware.usable_cores >= hardware.cores:
        yield Finding("processor", found)
        return
    by = "a container's limit" if hardware.limited_by_container else "taskset, a batch system or a container"
    yield Finding(
        "processor",
        f"{found}: this program may use only {hardware.usable_cores} of the cores",
        "warning",
        f"{by} sets that limit; ask for more cores, and training is faster by about the same factor",
    )


def format_count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def check_memory(hardware: Hardware) -> Iterable[Finding]:
    found = f"{format_bytes(hardware.memory)}, {format_bytes(hardware.available_memory)} of it free"
    if hardware.memory < LOW_MEMORY:
        yield Finding(
            "memory",
            found,
            "warning",
            "less than 8 GB: train with `low_memory` `max_tokens` 512 `micro_tokens` 512",
        )
    elif hardware.available_memory < MIN_FREE_MEMORY:
        yield Finding("memory", found, "warning", "close other programs, or train with `low_memory`")
    else:
        yield Finding("memory", found)


def check_swap(hardware: Hardware) -> Iterable[Finding]:
    if hardware.swap_used > MAX_SWAP_SHARE * hardware.memory:
        remedy = (
            "swapped-out memory is read back many times more slowly than memory: close other programs first"
        )
        yield Finding("swap", f"{format_bytes(hardware.swap_used)} in use", "warning", remedy)


def check_gpu(hardware: Hardware) -> Iterable[Finding]:
    gpu, until_then = hardware.gpu, "; until then the CPU computes"
    if gpu and gpu.fault:
        remedy = (
            "close what else uses it, or install a torch that is built for it, as https://pytorch.org says"
        )
        yield Finding("GPU", f"{gpu.name} cannot compute: {gpu.fault}", "warning", remedy + until_then)
    elif gpu:
        yield Finding("GPU", f"{gpu.name}, {format_bytes(gpu.memory)}; a matrix product on it is right")
    elif hardware.nvidia_driver and hardware.torch_build.startswith("CUDA"):
        remedy = (
            "update the driver (CUDA 13 needs 580 or newer), or install torch for an older CUDA, as "
            "https://pytorch.org says"
        )
        problem = f"an NVIDIA driver is there, but this torch, built for {hardware.torch_build}, finds no GPU"
        yield Finding("GPU", problem, "warning", remedy + until_then)
    elif hardware.nvidia_driver:
        remedy = "install torch as https://pytorch.org says for your CUDA version"
        yield Finding(
            "GPU",
            "an NVIDIA driver is there, but this torch is built without CUDA",
            "warning",
            remedy + until_then,
        )
    else:
        yield Finding("GPU", "none that torch can use, and none is needed")


def check_precision(hardware: Hardware) -> Iterable[Finding]:
    """Check whether bf16 is fast, by the rule of `system.hardware.is_bf16_fast`."""
    rates = f"fp32 {hardware.fp32 / 1e9:,.0f} GFLOP/s, bf16 {hardware.bf16 / 1e9:,.0f} GFLOP/s"
    if hardware.bf16 * 0.75 > hardware.fp32:
        yield Finding(
            "precision",
            f"{rates}: bf16 is {hardware.bf16 / hardware.fp32:.1f} times as fast, so training tries both",
        )
        return
    on_gpu = hardware.gpu is not None and not hardware.gpu.fault
    remedy = "" if on_gpu else "nothing to set; a smaller model or a longer `budget` makes up for it"
    found = f"{rates}: no fast bf16 here, as on most laptops, so training computes in fp32"
    yield Finding("precision", found, "ok" if on_gpu else "warning", remedy)


def check_environment(hardware: Hardware) -> Iterable[Finding]:
    """Check OpenMP's environment variables; loratune sets torch's threads regardless of OMP_NUM_THREADS."""
    threads = str(hardware.threads)
    if (limit := hardware.variables.get(THREAD_LIMIT_VARIABLE, threads)).isdecimal() and int(
        limit
    ) < hardware.threads:
        yield Finding(
            "environment",
            f"{THREAD_LIMIT_VARIABLE}={limit} is less than the threads used",
            "warning",
            f"unset {THREAD_LIMIT_VARIABLE}",
        )
    if hardware.variables.get(THREADS_VARIABLE, threads) != threads:
        found = (
            f"{THREADS_VARIABLE}={hardware.variables[THREADS_VARIABLE]} is not respected: loratune takes one "
            "thread for each core that it may use"
        )
        yield Finding(
            "environment", found, "warning", f"unset {THREADS_VARIABLE}; choose the number with `threads`"
        )
    if binding := [
        f"{name}={hardware.variables[name]}" for name in AFFINITY_VARIABLES if name in hardware.variables
    ]:
        remedy = "unset it, unless you know that each thread gets a core of its own"
        yield Finding("environment", f"{' and '.join(binding)} binds threads to cores", "warning", remedy)


def check_other_programs(hardware: Hardware) -> Iterable[Finding]:
    if hardware.crowded:
        remedy = (
            "close them, or leave them a core with `threads`; until then the speed of training will be "
            "measured wrongly"
        )
        yield Finding("other programs", "they keep the same cores busy right now", "warning", remedy)


def check_power(hardware: Hardware) -> Iterable[Finding]:
    if hardware.on_battery:
        yield Finding(
            "power",
            "the machine runs on battery",
            "warning",
            "plug it in: most laptops are slower on battery",
        )
    if hardware.governor:
        remedy = "choose the power profile `performance`, such as with `powerprofilesctl set performance`"
        yield Finding(
            "power",
            f"the processor's frequency is held low (governor {hardware.governor})",
            "warning",
            remedy,
        )


CHECKS = (
    check_cores,
    check_memory,
    check_swap,
    check_gpu,
    check_precision,
    check_environment,
    check_other_programs,
    check_power,
)
