"""The machine as training will find it: what it has, and what slows it down."""

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from loratune.doctor.finding import Finding, bytes_in_words
from loratune.system.cgroup import cores_limit, memory_limit
from loratune.system.hardware import (
    Gpu,
    Neighbours,
    find_gpu,
    physical_cores,
    processor_name,
    product_seconds,
    torch_build,
    use_machine,
)
from loratune.system.memory import available_memory

PRODUCT = 576, 1536  # widths of SmolLM2's MLP
PRODUCT_FLOP = 2 * 512 * 576 * 1536
LITTLE_MEMORY = 7.4e9  # what a machine that is sold with 8 GB has at least
NEEDED_MEMORY = 3.2e9  # SmolLM2 in fp32
SWAPPED = 0.1  # share of the memory
HELD_BACK = "powersave"
SCALING_BY_ITSELF = ("intel_pstate", "amd-pstate-epp", "amd_pstate_epp")  # drivers whose "powersave" is as fast as is asked for
FREQUENCY = Path("/sys/devices/system/cpu/cpu0/cpufreq")
THREADS, THREAD_LIMIT = "OMP_NUM_THREADS", "OMP_THREAD_LIMIT"
BINDING = ("GOMP_CPU_AFFINITY", "KMP_AFFINITY")


@dataclass(frozen=True)
class Hardware:
    processor: str
    cores: int  # physical ones, or logical ones where nobody knows which share a physical one
    topology_known: bool
    usable_cores: int  # of these, those that this process may use
    limited_by_container: bool  # to less than the time of all cores
    threads: int
    memory: int  # bytes that this process may have at most
    available_memory: int
    swap_used: int
    gpu: Gpu | None
    nvidia_driver: bool
    torch_build: str  # such as CUDA 13.0, or CPU
    fp32: float  # FLOP/s of a product of the size that training computes
    bf16: float
    crowded: bool  # other programs wanted the same cores
    on_battery: bool
    governor: str  # of the processor's frequency, where it holds it back
    variables: Mapping[str, str]  # environment variables that change how threads work


def look_at_hardware(threads: int, device: str) -> Hardware:
    """Takes a second or two. Raises UserError for a GPU that is asked for and not there."""
    neighbours = Neighbours()
    import psutil
    import torch

    use_machine(threads, device)
    physical = psutil.cpu_count(logical=False)
    cores = physical or psutil.cpu_count() or 1
    limit, memory = memory_limit(), psutil.virtual_memory().total
    fp32, bf16 = product_seconds(*PRODUCT)
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return Hardware(
        processor=processor_name(),
        cores=cores,
        topology_known=physical is not None,
        usable_cores=physical_cores(),
        limited_by_container=(cores_limit() or cores) < cores,
        threads=torch.get_num_threads(),
        memory=min(memory, limit.total) if limit else memory,
        available_memory=available_memory(),
        swap_used=psutil.swap_memory().used,
        gpu=find_gpu(),
        nvidia_driver=has_nvidia_driver(),
        torch_build=torch_build(),
        fp32=PRODUCT_FLOP / fp32,
        bf16=PRODUCT_FLOP / bf16,
        crowded=neighbours.crowd(torch.get_num_threads()),
        on_battery=battery is not None and not battery.power_plugged,
        governor=slow_governor(),
        variables={name: os.environ[name] for name in (THREADS, THREAD_LIMIT, *BINDING) if name in os.environ},
    )


def has_nvidia_driver() -> bool:
    """Whether an NVIDIA driver is installed whose GPUs nobody hides from torch."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and shutil.which("nvidia-smi") is not None


def slow_governor() -> str:
    """The setting that keeps the processor's frequency low; "" where none does, or none is known."""
    try:
        governor, driver = ((FREQUENCY / name).read_text().strip() for name in ("scaling_governor", "scaling_driver"))
    except OSError:
        return ""
    return governor if governor == HELD_BACK and driver not in SCALING_BY_ITSELF else ""


def cores(facts: Hardware) -> Iterable[Finding]:
    there = counted(facts.cores, "core")
    if not facts.topology_known:
        there = f"{counted(facts.cores, 'logical core')} (the system does not say which share a physical one)"
    found = f"{facts.processor}, {there}, {counted(facts.threads, 'thread')} used"
    if facts.usable_cores >= facts.cores:
        yield Finding("processor", found)
        return
    by = "a container's limit" if facts.limited_by_container else "taskset, a batch system or a container"
    yield Finding(
        "processor",
        f"{found}: this program may use only {facts.usable_cores} of the cores",
        "warning",
        f"{by} holds it to that; ask there for more, training is about as many times faster",
    )


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def memory(facts: Hardware) -> Iterable[Finding]:
    found = f"{bytes_in_words(facts.memory)}, {bytes_in_words(facts.available_memory)} of it free"
    if facts.memory < LITTLE_MEMORY:
        yield Finding("memory", found, "warning", "less than 8 GB: train with --low-memory --max-tokens 512 --micro-tokens 512")
    elif facts.available_memory < NEEDED_MEMORY:
        yield Finding("memory", found, "warning", "close other programs, or train with --low-memory")
    else:
        yield Finding("memory", found)


def swap(facts: Hardware) -> Iterable[Finding]:
    if facts.swap_used > SWAPPED * facts.memory:
        remedy = "what is swapped out comes back slowly, many times slower than memory: close other programs first"
        yield Finding("swap", f"{bytes_in_words(facts.swap_used)} in use", "warning", remedy)


def gpu(facts: Hardware) -> Iterable[Finding]:
    found, until_then = facts.gpu, "; until then the CPU computes"
    if found and found.fault:
        remedy = "close what else uses it, or install a torch that is built for it, as https://pytorch.org says"
        yield Finding("GPU", f"{found.name} cannot compute: {found.fault}", "warning", remedy + until_then)
    elif found:
        yield Finding("GPU", f"{found.name}, {bytes_in_words(found.memory)}; a product on it is right")
    elif facts.nvidia_driver and facts.torch_build.startswith("CUDA"):
        remedy = "update the driver (CUDA 13 needs 580 or newer), or install torch for an older CUDA, as https://pytorch.org says"
        problem = f"an NVIDIA driver is there, but this torch, built for {facts.torch_build}, finds no GPU"
        yield Finding("GPU", problem, "warning", remedy + until_then)
    elif facts.nvidia_driver:
        remedy = "install torch as https://pytorch.org says for your CUDA version"
        yield Finding("GPU", "an NVIDIA driver is there, but this torch is built without CUDA", "warning", remedy + until_then)
    else:
        yield Finding("GPU", "none that torch can use, and none is needed")


def precision(facts: Hardware) -> Iterable[Finding]:
    """The rule is `machine.bf16_is_fast`'s."""
    rates = f"fp32 {facts.fp32 / 1e9:,.0f} GFLOP/s, bf16 {facts.bf16 / 1e9:,.0f} GFLOP/s"
    if facts.bf16 * 0.75 > facts.fp32:
        yield Finding("precision", f"{rates}: bf16 is {facts.bf16 / facts.fp32:.1f} times as fast, so training tries both")
        return
    on_gpu = facts.gpu is not None and not facts.gpu.fault
    remedy = "" if on_gpu else "nothing to set; a smaller model or a longer --budget makes up for it"
    found = f"{rates}: no fast bf16 here, as on most laptops, so training computes in fp32"
    yield Finding("precision", found, "ok" if on_gpu else "warning", remedy)


def variables(facts: Hardware) -> Iterable[Finding]:
    """What torch does with them was tried: its number of threads is set, whatever OMP_NUM_THREADS says."""
    threads = str(facts.threads)
    if (limit := facts.variables.get(THREAD_LIMIT, threads)).isdecimal() and int(limit) < facts.threads:
        yield Finding("environment", f"{THREAD_LIMIT}={limit} is less than the threads used", "warning", f"unset {THREAD_LIMIT}")
    if facts.variables.get(THREADS, threads) != threads:
        found = f"{THREADS}={facts.variables[THREADS]} is not heeded: loratune takes one thread for each core that it may use"
        yield Finding("environment", found, "warning", f"unset {THREADS}; choose the number with --threads")
    if binding := [f"{name}={facts.variables[name]}" for name in BINDING if name in facts.variables]:
        remedy = "unset it, unless you know that each thread gets a core of its own"
        yield Finding("environment", f"{' and '.join(binding)} binds threads to cores", "warning", remedy)


def neighbours(facts: Hardware) -> Iterable[Finding]:
    if facts.crowded:
        remedy = "close them, or leave them a core with --threads; how fast training is will be measured wrongly meanwhile"
        yield Finding("other programs", "they keep the same cores busy just now", "warning", remedy)


def power(facts: Hardware) -> Iterable[Finding]:
    if facts.on_battery:
        yield Finding("power", "the machine runs on its battery", "warning", "plug it in: most laptops are slower without mains")
    if facts.governor:
        remedy = "choose the power profile `performance`, such as with `powerprofilesctl set performance`"
        yield Finding("power", f"the processor's frequency is held low (governor {facts.governor})", "warning", remedy)


CHECKS = (cores, memory, swap, gpu, precision, variables, neighbours, power)
