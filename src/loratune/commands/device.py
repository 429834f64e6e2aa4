"""Where a command computes: on the CPU or a GPU."""

from loratune.system.console import warn
from loratune.system.hardware import CPU_REMEDY, set_up_device


def choose_device(threads: int, device: str, resume: str = "") -> str:
    """Set the number of threads and return `cpu` or `cuda`; say why a GPU that is there is not taken.

    `resume` is the command with which a run goes on. Raises UserError for `cuda` where no GPU can compute.
    """
    remedy = f"to go on without it: {resume} --device cpu --accept-changes" if resume else CPU_REMEDY
    chosen = set_up_device(threads, device, remedy)
    if chosen.warning:
        warn(f"{chosen.warning}; the CPU computes instead (`loratune doctor` says what to do)")
    return chosen.name
