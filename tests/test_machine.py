"""What is known about the machine, against a machine that is made up."""

import gc
import weakref
from collections import namedtuple

import psutil
import pytest

from loratune import machine

Times = namedtuple("Times", "user nice system idle iowait steal guest")


@pytest.fixture
def clock(monkeypatch) -> dict:
    """Seconds of the clock, of each core and of this process; of the machine's eight logical cores it may use four."""
    now = {"clock": 100.0, "core": 900.0, "own": 20.0}
    own = namedtuple("Own", "user system")
    monkeypatch.setattr(machine.time, "perf_counter", lambda: now["clock"])
    monkeypatch.setattr(machine, "allowed_cores", lambda: {0, 2, 4, 6})

    def cores(percpu):
        used, unused = Times(now["core"] - 3, 1, 1, 70, 5, 1, 600), Times(7e9 * now["clock"], 1, 1, 70, 5, 1, 600)
        return [used, unused] * 4

    monkeypatch.setattr(psutil, "cpu_times", cores)
    monkeypatch.setattr(psutil.Process, "cpu_times", lambda _: own(now["own"] - 1, 1))
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 8 if logical else 4)
    return now


@pytest.mark.parametrize(("threads", "others", "crowded"), [(4, 0.2, False), (4, 0.3, True), (3, 1.2, False), (3, 1.3, True)])
def test_neighbours_crowd_when_the_cores_do_not_suffice_for_all(clock, threads, others, crowded):
    neighbours = machine.Neighbours()
    clock["clock"] += 10
    clock["own"] += 10 * threads
    clock["core"] += 10 * (threads + others) / 4
    assert neighbours.crowd(threads) is crowded


def test_more_threads_than_cores_are_no_crowd(clock):
    neighbours = machine.Neighbours()
    clock["clock"] += 10
    clock["own"] += 40
    clock["core"] += 10
    assert not neighbours.crowd(16)


def test_cpu_seconds_of_others_are_not_negative():
    assert machine.others_cpu_seconds() > 0


def test_what_a_command_leaves_behind_in_a_circle_is_let_go():
    class Model:
        pass

    model, gone = Model(), []
    model.itself = model
    weakref.finalize(model, gone.append, True)
    gc.disable()
    try:
        del model
        assert not gone
        machine.release_finished_work()
    finally:
        gc.enable()
    assert gone
