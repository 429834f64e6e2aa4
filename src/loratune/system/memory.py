"""How much memory there is, how much a process has, and how to give some back."""

import ctypes
import errno
import gc
import resource
import sys
from typing import TYPE_CHECKING

from loratune.system.cgroup import read_memory_limit

if TYPE_CHECKING:  # importing it takes seconds
    import torch

ERROR_COMMITMENT_LIMIT = 1455  # Windows: the paging file is too small


def peak_memory_mb() -> float:
    """Return the largest resident memory that this process has had, in MB (10^6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6, 1)


def available_gpu_memory(device: "torch.device") -> int:
    """Return the bytes that this process can still take of the GPU: free ones, and blocks that torch keeps
    unused.
    """
    import torch

    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def resident_memory() -> int:
    """Return the resident memory of this process, in bytes."""
    import psutil

    return psutil.Process().memory_info().rss


def available_memory() -> int:
    """Return the bytes that this process can still take without anything being swapped out."""
    import psutil

    limit, available = read_memory_limit(), psutil.virtual_memory().available
    return min(available, limit.free) if limit else available


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed. Torch, oneDNN and CUDA's libraries say so only in the message of
    a RuntimeError.
    """
    messages = (
        "can't allocate memory",
        "out of memory",
        "bad_alloc",
        "could not create a memory",
        "STATUS_ALLOC_FAILED",
    )
    if isinstance(error, RuntimeError):
        torch = sys.modules.get("torch")
        return any(message in str(error) for message in messages) or (
            torch is not None and isinstance(error, torch.OutOfMemoryError)
        )
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM or getattr(error, "winerror", None) == ERROR_COMMITMENT_LIMIT
    return isinstance(error, MemoryError)


def release_freed_memory() -> None:
    """Give freed blocks back to the system: glibc keeps them, in pieces that rarely fit the next step's
    shapes.

    So does torch for a GPU.
    """
    if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        # musl has no malloc_trim; it gives memory back by itself.
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)(0)


def release_finished_work() -> None:
    """Give back what a finished command has left behind, too. This is slow: call it between two commands."""
    # Matplotlib's first import leaves a reference cycle that keeps its callers' values: a whole model.
    gc.collect()
    release_freed_memory()


def return_freed_memory_at_once() -> None:
    """From now on, give blocks of a megabyte and more back to the system when they are freed: slower, without
    leftovers.
    """
    if sys.platform == "linux":
        M_MMAP_THRESHOLD = -3  # glibc's malloc.h
        getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)(M_MMAP_THRESHOLD, 1 << 20)
