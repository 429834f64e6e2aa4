"""Choose the device: CPU or GPU."""

from loratune.system.hardware import CPU_REMEDY, set_up_device
from loratune.system.messages import warn


def choose_device(threads: int, device: str, remedy: str = CPU_REMEDY) -> str:
    """Set the number of threads and return `cpu` or `cuda`; say why a GPU that is there is not used.

    Args:
        threads: of the CPU; 0 means one for each physical core.
        device: auto, cpu or cuda.
        remedy: what to do if `cuda` is asked for but no GPU can compute.

    Raises:
        UserError: `cuda` is asked for but no GPU can compute.
    """
    chosen = set_up_device(threads, device, remedy)
    if chosen.warning:
        warn(f"{chosen.warning}; the CPU computes instead (`loratune doctor` says what to do)")
    return chosen.name
