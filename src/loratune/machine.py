"""The machine that a command computes on."""

import ctypes
import gc
import math
import os
import platform
import resource
import sys
import time

from loratune.cgroup import cores_limit, memory_limit
from loratune.errors import UserError


def share_cores() -> None:
    """Let a thread that waits for the others fall asleep after some microseconds, unless the user has said how it is to wait.

    By default GNU OpenMP lets it spin for milliseconds. Where another program wants that core, too, the system then gives
    each of them half of it, and every product of matrices waits for the slower thread; one that sleeps is woken at once.
    Torch reads this when it is imported, and never again.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def use_machine(threads: int, device: str) -> str:
    """Set the number of threads; returns the device, `cpu` or `cuda`. Raises UserError for a GPU that is not there."""
    # Micro-batches have many lengths, and of up to 1,024 shapes oneDNN keeps a compiled product, and torch that product's
    # buffers: in bf16, memory would grow by 20 MB with each step.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "16")
    import torch

    torch.set_num_threads(threads or physical_cores())
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device that this torch can use; leave the option out to compute on the CPU")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def physical_cores() -> int:
    """Cores that this process may use. Two threads on one core only get in each other's way in matrix products."""
    import psutil

    allowed = min(len(allowed_cores()), psutil.cpu_count(logical=False) or 1)
    return max(1, min(allowed, math.ceil(cores_limit() or allowed)))


def peak_memory_mb() -> float:
    """The largest resident memory that this process has had, in MB (10^6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6, 1)


def resident_memory() -> int:
    """Bytes of memory that this process has now."""
    import psutil

    return psutil.Process().memory_info().rss


def available_memory() -> int:
    """Bytes that this process could still take without anything being swapped out."""
    import psutil

    limit, available = memory_limit(), psutil.virtual_memory().available
    return min(available, limit.free) if limit else available


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: torch, oneDNN and CUDA say so in words alone, in a RuntimeError."""
    told = ("can't allocate memory", "out of memory", "bad_alloc", "could not create a memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(words in str(error) for words in told))


class Neighbours:
    """The other programs on this process's cores, watched from now on."""

    def __init__(self):
        self.began, self.before = time.perf_counter(), others_cpu_seconds()

    def crowd(self, threads: int) -> bool:
        """Whether they wanted cores that this process's threads could have used."""
        busy_cores = (others_cpu_seconds() - self.before) / (time.perf_counter() - self.began)
        return busy_cores > max(0, physical_cores() - threads) + 0.25


def others_cpu_seconds() -> float:
    """What all but this process has computed on its cores since the machine started, in seconds of one core."""
    import psutil

    cores, own = psutil.cpu_times(percpu=True), psutil.Process().cpu_times()
    idle = ("idle", "iowait", "guest", "guest_nice")  # a guest's time is in the user's, too
    busy = [sum(seconds for kind, seconds in core._asdict().items() if kind not in idle) for core in cores]
    return sum(busy[number] for number in allowed_cores() if number < len(busy)) - own.user - own.system


def allowed_cores() -> set[int]:
    """Numbers of the logical cores that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def processor_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def processor_kind(device: str) -> str:
    """What the last bits of a sum depend on, besides the number of threads: the processor and the instructions used of it."""
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{processor_name()}, {torch.backends.cpu.get_cpu_capability()}"


def release_freed_memory() -> None:
    """Give freed blocks back to the system: glibc keeps them, in pieces that rarely fit the next step's shapes."""
    if sys.platform == "linux":
        # musl has no malloc_trim; it gives memory back by itself.
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)(0)


def release_finished_work() -> None:
    """Give back what a command has left behind, too: slow, for between two of them."""
    gc.collect()  # matplotlib's first import leaves a circle that keeps what its callers had: a whole trained model
    release_freed_memory()


def return_memory_at_once() -> None:
    """From now on, blocks of a megabyte and more go back to the system when they are freed: slower, without leftovers."""
    if sys.platform == "linux":
        M_MMAP_THRESHOLD = -3  # glibc's malloc.h
        getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)(M_MMAP_THRESHOLD, 1 << 20)


def bf16_is_fast(width_in: int, width_out: int) -> bool:
    """Whether a product of [512, in] and [in, out] takes at most 3/4 of its time in fp32."""
    fp32, bf16 = product_seconds(width_in, width_out)
    return bf16 < 0.75 * fp32


def product_seconds(width_in: int, width_out: int) -> tuple[float, float]:
    """What a product of [512, in] and [in, out] takes in fp32 and in bf16 (best of 5 each)."""
    import torch

    seconds = []
    for precision in (torch.float32, torch.bfloat16):
        x, weight = torch.ones(512, width_in, dtype=precision), torch.ones(width_out, width_in, dtype=precision)
        seconds.append(min(_seconds(torch.nn.functional.linear, x, weight) for _ in range(5)))
    return seconds[0], seconds[1]


def _seconds(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start
