"""What is known about the machine, against a machine that is made up."""

from collections import namedtuple

import psutil
import pytest

from loratune import machine

Times = namedtuple("Times", "user nice system idle iowait steal guest")


@pytest.fixture
def clock(monkeypatch) -> dict:
    """Seconds of the clock, of all the cores and of this process; the machine has four cores."""
    now = {"clock": 100.0, "all": 900.0, "idle": 70.0, "own": 20.0}
    own = namedtuple("Own", "user system")
    monkeypatch.setattr(machine.time, "perf_counter", lambda: now["clock"])
    monkeypatch.setattr(psutil, "cpu_times", lambda: Times(now["all"] - 3, 1, 1, now["idle"], 5, 1, 600))
    monkeypatch.setattr(psutil.Process, "cpu_times", lambda _: own(now["own"] - 1, 1))
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 8 if logical else 4)
    return now


@pytest.mark.parametrize(("threads", "others", "crowded"), [(4, 0.2, False), (4, 0.3, True), (3, 1.2, False), (3, 1.3, True)])
def test_neighbours_crowd_when_the_cores_do_not_suffice_for_all(clock, threads, others, crowded):
    neighbours = machine.Neighbours()
    clock["clock"] += 10
    clock["own"] += 10 * threads
    clock["all"] += 10 * (threads + others)
    assert neighbours.crowd(threads) is crowded


def test_more_threads_than_cores_are_no_crowd(clock):
    neighbours = machine.Neighbours()
    clock["clock"] += 10
    clock["own"] += 40
    clock["all"] += 40
    assert not neighbours.crowd(16)


def test_cpu_seconds_of_others_are_not_negative():
    assert machine.others_cpu_seconds() > 0
