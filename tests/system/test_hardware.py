"""The machine's cores, GPU and memory, on a simulated machine."""

import errno
import gc
import weakref
from collections import namedtuple
from types import SimpleNamespace

import psutil
import pytest
import torch

from loratune.errors import UserError
from loratune.generation.cache import choose_slot_count
from loratune.system import hardware, memory

Times = namedtuple("Times", "user nice system idle iowait steal guest")


def windows_error(number: int, text: str) -> OSError:
    """As Windows raises it; elsewhere an OSError has no such number."""
    error = OSError(errno.EINVAL, text)
    error.winerror = number
    return error


@pytest.fixture
def clock(monkeypatch) -> dict:
    """Seconds of the clock, of each core and of this process; of the machine's eight logical cores it may use
    four.
    """
    now = {"clock": 100.0, "core": 900.0, "own": 20.0}
    own = namedtuple("Own", "user system")
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: now["clock"])
    monkeypatch.setattr(hardware, "list_allowed_cores", lambda: {0, 2, 4, 6})

    def cores(percpu):
        used, unused = (
            Times(now["core"] - 3, 1, 1, 70, 5, 1, 600),
            Times(7e9 * now["clock"], 1, 1, 70, 5, 1, 600),
        )
        return [used, unused] * 4

    monkeypatch.setattr(psutil, "cpu_times", cores)
    monkeypatch.setattr(psutil.Process, "cpu_times", lambda _: own(now["own"] - 1, 1))
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 8 if logical else 4)
    return now


@pytest.mark.parametrize(
    ("threads", "others", "crowded"), [(4, 0.2, False), (4, 0.3, True), (3, 1.2, False), (3, 1.3, True)]
)
def test_other_programs_are_busy_if_cores_do_not_suffice(clock, threads, others, crowded):
    neighbours = hardware.OtherPrograms()
    clock["clock"] += 10
    clock["own"] += 10 * threads
    clock["core"] += 10 * (threads + others) / 4
    assert neighbours.are_busy(threads) is crowded


def test_more_threads_than_cores_are_not_other_programs(clock):
    neighbours = hardware.OtherPrograms()
    clock["clock"] += 10
    clock["own"] += 40
    clock["core"] += 10
    assert not neighbours.are_busy(16)


def test_cpu_seconds_of_others_are_not_negative():
    assert hardware.measure_other_cpu_seconds() > 0


def test_reference_cycles_of_a_command_are_released():
    class Model:
        pass

    model, gone = Model(), []
    model.itself = model
    weakref.finalize(model, gone.append, True)
    gc.disable()
    try:
        del model
        assert not gone
        memory.release_finished_work()
    finally:
        gc.enable()
    assert gone


def test_busy_cores_outside_a_quota_do_not_count(clock, monkeypatch):
    """A container may have the time of a core and a half on a machine of many."""
    monkeypatch.setattr(hardware, "read_core_limit", lambda: 1.5)
    assert hardware.count_usable_cores() == 2
    neighbours = hardware.OtherPrograms()
    clock["clock"] += 10
    clock["own"] += 15
    clock["core"] += 10 * (1.5 + 2) / 4
    assert not neighbours.are_busy(2)
    clock["core"] += 10 * 0.5 / 4
    assert neighbours.are_busy(2)


def test_all_cores_are_used_if_topology_is_unknown(monkeypatch):
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 8 if logical else None)
    monkeypatch.setattr(hardware, "list_allowed_cores", lambda: {0, 1, 2, 5})
    monkeypatch.setattr(hardware, "read_core_limit", lambda: None)
    assert hardware.count_usable_cores() == 4


@pytest.fixture
def gpu(monkeypatch):
    """Torch finds a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    about = SimpleNamespace(name="Abacus 3", total_memory=8 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: about)
    return monkeypatch


def test_gpu_is_tried_before_use(gpu):
    ones = torch.ones
    gpu.setattr(torch, "ones", lambda *shape, dtype, device: ones(*shape, dtype=dtype))
    assert hardware.detect_gpu() == hardware.Gpu("Abacus 3", 8 * 10**9, "")
    assert hardware.set_up_device(1, "auto") == hardware.Device("cuda") == hardware.set_up_device(1, "cuda")
    assert hardware.set_up_device(1, "cpu") == hardware.Device("cpu")
    gpu.setattr(torch, "ones", lambda *shape, dtype, device: ones(*shape, dtype=dtype) / 2)
    assert hardware.detect_gpu().fault == "a small product of it is wrong"


@pytest.mark.parametrize(
    "error", [RuntimeError, torch.AcceleratorError, torch.OutOfMemoryError, AssertionError]
)
def test_failing_gpu_is_not_used(gpu, error):
    def fail(*_, **__):
        raise error(
            "CUDA error: CUDA-capable device(s) is/are busy\nSearch for `cudaErrorDevicesUnavailable'"
        )

    gpu.setattr(torch, "ones", fail)
    fault = "CUDA error: CUDA-capable device(s) is/are busy"
    assert hardware.detect_gpu() == hardware.Gpu("Abacus 3", 8 * 10**9, fault)
    assert hardware.set_up_device(1, "auto") == hardware.Device("cpu", f"Abacus 3 cannot compute: {fault}")
    assert hardware.set_up_device(1, "cpu") == hardware.Device("cpu")
    with pytest.raises(UserError) as refused:
        hardware.set_up_device(1, "cuda")
    assert refused.value.problems == (
        f"device=cuda: Abacus 3 cannot compute: {fault}; {hardware.CPU_REMEDY}",
    )
    gpu.setattr(torch.cuda, "get_device_properties", fail)
    assert hardware.detect_gpu() == hardware.Gpu("a GPU", 0, fault)


@pytest.mark.parametrize(
    "failure",
    [
        torch.OutOfMemoryError("Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: out of memory"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        windows_error(1455, "The paging file is too small for this operation to complete"),
    ],
    ids=str,
)
def test_every_out_of_memory_message_is_recognised(failure):
    assert memory.is_out_of_memory(failure)


def test_freed_gpu_memory_is_released(monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: bool(emptied))
    memory.release_freed_memory()
    assert not emptied  # it would begin to use the GPU
    emptied.append(True)
    memory.release_freed_memory()
    assert len(emptied) == 2


def test_reserved_gpu_memory_counts_as_free(monkeypatch):
    for name, size in (("mem_get_info", (10, 80)), ("memory_reserved", 30), ("memory_allocated", 12)):
        monkeypatch.setattr(torch.cuda, name, lambda _, size=size: size)
    weight = SimpleNamespace(is_cuda=True, device="cuda", element_size=lambda: 1)
    decoder = SimpleNamespace(spec=SimpleNamespace(layers=1, kv_heads=1, head_dim=1), head_weight=weight)
    assert choose_slot_count(decoder, 64, capacity=1) == (10 + 30 - 12) // 4 // 2
