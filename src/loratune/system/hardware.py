"""The machine: its device, cores, processor and speed, and other programs on it."""

import math
import os
import platform
import time
from dataclasses import dataclass

from loratune.errors import UserError
from loratune.system.cgroup import read_core_limit

CPU_REMEDY = "leave the option out to compute on the CPU"


def set_wait_policy() -> None:
    """Let waiting OpenMP threads sleep after some microseconds, unless the user has chosen otherwise.

    By default GNU OpenMP lets them spin for milliseconds. If another program needs the same core, each then
    gets half of it, and every matrix product waits for the slower thread; a sleeping thread is woken
    immediately. Torch reads the variable only when it is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


@dataclass(frozen=True)
class Device:
    """The device that is chosen."""

    name: str  # cpu or cuda
    warning: str = ""  # why an existing GPU is not used


@dataclass(frozen=True)
class Gpu:
    """The GPU that torch finds."""

    name: str
    memory: int  # bytes; 0 if unknown
    fault: str  # why it cannot compute; empty if it can


def set_up_device(threads: int, device: str, remedy: str = CPU_REMEDY) -> Device:
    """Set the number of threads and choose the device; `auto` takes a GPU if one can compute.

    Raises:
        UserError: `cuda` is asked for but no GPU can compute.
    """
    # Micro-batches have many lengths. For up to 1,024 shapes oneDNN would cache a compiled product, and torch
    # its buffers: in bf16, memory would grow by 20 MB with each step.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "16")
    import torch

    torch.set_num_threads(threads or count_usable_cores())
    if device == "cpu":
        return Device("cpu")
    gpu = detect_gpu()
    if gpu and not gpu.fault:
        return Device("cuda")
    problem = f"{gpu.name} cannot compute: {gpu.fault}" if gpu else "no CUDA device that this torch can use"
    if device == "cuda":
        raise UserError(problem, setting="device", value=device, remedy=remedy)
    return Device("cpu", problem if gpu else "")


def detect_gpu() -> Gpu | None:
    """Return the GPU that torch finds, after trying a small product in each precision; None if there is none.

    Only computing shows whether it is too old for the installed torch, full, or reserved by another process.
    """
    import torch

    if not torch.cuda.is_available():
        return None
    name, memory, fault = "a GPU", 0, ""
    try:
        properties = torch.cuda.get_device_properties(0)
        name, memory = properties.name, properties.total_memory
        for precision in (torch.float32, torch.bfloat16):
            x = torch.ones(64, 64, dtype=precision, device="cuda")
            if (x @ x).sum().item() != 64**3:  # waits for the GPU
                fault = "a small product of it is wrong"
    except Exception as error:  # whatever torch and the driver raise
        fault = str(error).partition("\n")[0]
    return Gpu(name, memory, fault)


def torch_build() -> str:
    """Return what the installed torch is built for, such as `CUDA 13.0`, `ROCm 6.4`, or `CPU`."""
    import torch

    kinds = {"ROCm": torch.version.hip, "CUDA": torch.version.cuda}
    return next((f"{kind} {number}" for kind, number in kinds.items() if number), "CPU")


def count_usable_cores() -> int:
    """Count the physical cores that this process may use.

    Two threads on one core would only slow each other down in matrix products.
    """
    allowed = count_allowed_cores()
    return max(1, min(allowed, math.ceil(read_core_limit() or allowed)))


def count_allowed_cores() -> int:
    """Count the cores that this process may run on, ignoring a container's time quota.

    If the system does not say which logical cores share a physical one, each counts.
    """
    import psutil

    allowed = len(list_allowed_cores())
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


class OtherPrograms:
    """The load of other programs on this process's cores, measured from now on."""

    def __init__(self):
        self.started, self.cpu_seconds_before = time.perf_counter(), measure_other_cpu_seconds()

    def are_busy(self, threads: int) -> bool:
        """Return whether they have used cores that this process's threads could have used."""
        cpu_seconds = measure_other_cpu_seconds() - self.cpu_seconds_before
        busy_cores = cpu_seconds / (time.perf_counter() - self.started)
        return busy_cores > max(0, count_allowed_cores() - threads) + 0.25


def measure_other_cpu_seconds() -> float:
    """Measure the core seconds that all other processes have used on our cores since the machine started."""
    import psutil

    cores, own = psutil.cpu_times(percpu=True), psutil.Process().cpu_times()
    idle = ("idle", "iowait", "guest", "guest_nice")  # a guest's time is in the user's, too
    busy = [sum(seconds for kind, seconds in core._asdict().items() if kind not in idle) for core in cores]
    return sum(busy[number] for number in list_allowed_cores() if number < len(busy)) - own.user - own.system


def list_allowed_cores() -> set[int]:
    """List the numbers of the logical cores that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def processor_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def identify_processor(device: str) -> str:
    """Return the processor and its instruction set, on which the last bits of a sum depend."""
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{processor_name()}, {torch.backends.cpu.get_cpu_capability()}"


def is_bf16_fast(in_features: int, out_features: int) -> bool:
    """Return whether bf16 takes at most 3/4 of the time of fp32 for a product of [512, in] and [in, out]."""
    fp32, bf16 = time_matmul(in_features, out_features)
    return bf16 < 0.75 * fp32


def time_matmul(in_features: int, out_features: int) -> tuple[float, float]:
    """Time a product of [512, in] and [in, out] in fp32 and in bf16: seconds, the best of 5 each."""
    import torch

    seconds = []
    for precision in (torch.float32, torch.bfloat16):
        x, weight = (
            torch.ones(512, in_features, dtype=precision),
            torch.ones(out_features, in_features, dtype=precision),
        )
        seconds.append(min(_time_call(torch.nn.functional.linear, x, weight) for _ in range(5)))
    return seconds[0], seconds[1]


def _time_call(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start
