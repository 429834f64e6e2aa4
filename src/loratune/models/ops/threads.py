"""Compute independent pieces of work in parallel, each by one thread.

Torch divides each operation among its threads, which wait for each other at its end. For many small
independent operations it is faster to give each thread one piece after another.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache

import torch


def map_in_parallel(work: Callable, *inputs: Sequence) -> list:
    """Compute `list(map(work, *inputs))` with as many threads as torch uses; autograd records nothing.

    Each piece is computed by a single thread, so its bits do not depend on which one. An exception in a piece
    is raised here, after all threads have finished.
    """
    pieces, threads = list(zip(*inputs, strict=True)), torch.get_num_threads()
    if min(threads, len(pieces)) < 2:
        with torch.no_grad():
            return [work(*piece) for piece in pieces]
    results = [None] * len(pieces)
    queue = iter(list(enumerate(pieces)))  # a free thread takes the next one
    inference = torch.is_inference_mode_enabled()

    def work_through_queue() -> None:
        with torch.inference_mode(inference), torch.no_grad():  # modes are per thread
            for number, piece in queue:
                results[number] = work(*piece)

    pool = get_thread_pool(threads - 1)
    others = [pool.submit(work_through_queue) for _ in range(min(threads, len(pieces)) - 1)]
    torch.set_num_threads(1)
    try:
        work_through_queue()
    finally:
        wait(others)
        torch.set_num_threads(threads)
    for other in others:
        other.result()
    return results


@cache
def get_thread_pool(count: int) -> ThreadPoolExecutor:
    """Return a pool of threads that each compute torch operations on one thread."""
    return ThreadPoolExecutor(count, "loratune", initializer=torch.set_num_threads, initargs=(1,))
