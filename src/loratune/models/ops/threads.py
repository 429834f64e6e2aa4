"""Independent pieces of work, each computed by one thread.

Torch shares the inside of an operation out among its threads, and all of them wait at its end. Where many
small operations know nothing of each other, it is faster to give each thread one piece after the other.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache

import torch


def map_in_parallel(work: Callable, *inputs: Sequence) -> list:
    """`list(map(work, *inputs))` by as many threads as torch has for an operation; autograd records nothing.

    A piece is computed by one thread alone, so the bits don't depend on who takes it. What a piece raises is
    raised here, when all threads have ended.
    """
    pieces, threads = list(zip(*inputs, strict=True)), torch.get_num_threads()
    if min(threads, len(pieces)) < 2:
        with torch.no_grad():
            return [work(*piece) for piece in pieces]
    results = [None] * len(pieces)
    queue = iter(list(enumerate(pieces)))  # whoever is free takes the next one
    inference = torch.is_inference_mode_enabled()

    def take() -> None:
        with torch.inference_mode(inference), torch.no_grad():  # modes are a thread's own
            for number, piece in queue:
                results[number] = work(*piece)

    others = [get_thread_pool(threads - 1).submit(take) for _ in range(min(threads, len(pieces)) - 1)]
    torch.set_num_threads(1)
    try:
        take()
    finally:
        wait(others)
        torch.set_num_threads(threads)
    for other in others:
        other.result()
    return results


@cache
def get_thread_pool(count: int) -> ThreadPoolExecutor:
    """Threads that wait for work and have one thread each for an operation of torch."""
    return ThreadPoolExecutor(count, "loratune", initializer=torch.set_num_threads, initargs=(1,))
