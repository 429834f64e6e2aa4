"""Memory: how much is available, how much this process uses, and how to release it."""

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
    """Return the bytes of GPU memory that this process can still use, torch's unused blocks included."""
    import torch

    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def resident_memory() -> int:
    """Return the resident memory of this process, in bytes."""
    import psutil

    return psutil.Process().memory_info().rss


def available_memory() -> int:
    """Return the bytes that this process can still use without anything being swapped out."""
    import psutil

    limit, available = read_memory_limit(), psutil.virtual_memory().available
    return min(available, limit.free) if limit else available


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that an allocation failed.

    Torch, oneDNN and CUDA's libraries say so only in the message of a RuntimeError.
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
    """Release freed blocks to the system, because glibc, and torch for a GPU, keep them.

    They are pieces that rarely fit the next step's shapes.
    """
    if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        # musl has no malloc_trim; it releases memory by itself.
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)(0)


def release_finished_work() -> None:
    """Release reference cycles of a finished command, too. This is slow: call it between two commands."""
    # Matplotlib's first import leaves a reference cycle that keeps its callers' values: a whole model.
    gc.collect()
    release_freed_memory()


def release_memory_when_freed() -> None:
    """From now on, release blocks of a megabyte and more when they are freed: slower, but less memory."""
    if sys.platform == "linux":
        M_MMAP_THRESHOLD = -3  # glibc's malloc.h
        getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)(M_MMAP_THRESHOLD, 1 << 20)
