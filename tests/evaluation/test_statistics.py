"""The bootstrap against cases that can be computed by hand, and against the normal theory."""

import numpy as np
import pytest

from loratune.evaluation import statistics
from loratune.evaluation.statistics import count_flips, paired_difference


def test_a_constant_change_is_certain():
    base = np.array([1.0, 5.0, 2.0])
    assert paired_difference(base, base - 0.5) == {"mean": -0.5, "interval": [-0.5, -0.5]}


def test_the_interval_is_that_of_the_normal_theory():
    rows = 900
    change = np.random.default_rng(1).normal(0.3, 2.0, rows)
    found = paired_difference(np.zeros(rows), change)
    half = 1.959964 * change.std() / np.sqrt(rows)
    assert found["mean"] == pytest.approx(change.mean())
    assert found["interval"] == pytest.approx([change.mean() - half, change.mean() + half], abs=0.02)


def test_pairing_counts_the_change_not_the_spread_of_the_rows():
    base = np.random.default_rng(1).normal(0, 100, 200)
    low, high = paired_difference(base, base - 1 + np.random.default_rng(2).normal(0, 0.1, 200))["interval"]
    assert -1.05 < low < high < -0.95


def test_a_ratio_is_of_sums_not_a_mean_of_ratios():
    found = paired_difference([10.0, 10.0], [9.0, 19.0], weights=[1, 99])
    assert found["mean"] == pytest.approx(8 / 100)
    # Two rows have four equally likely draws: both first, both second, and twice one of each.
    assert found["interval"] == pytest.approx([-1.0, 9 / 99])


def test_the_interval_covers_the_truth_as_often_as_it_says():
    generator, covered = np.random.default_rng(3), 0
    for trial in range(200):
        weights = generator.integers(1, 40, 120)
        change = weights * generator.normal(0.2, 1.0, 120)
        low, high = paired_difference(np.zeros(120), change, weights, seed=trial)["interval"]
        covered += low <= 0.2 <= high
    assert 0.88 <= covered / 200 <= 0.99


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    if "covers" in request.node.name:
        monkeypatch.setattr(statistics, "RESAMPLES", 500)


def test_same_seed_same_interval_however_the_draws_are_split(monkeypatch):
    base, tuned = np.random.default_rng(1).normal(size=(2, 50))
    first = paired_difference(base, tuned, seed=4)
    assert paired_difference(base, tuned, seed=4) == first
    assert paired_difference(base, tuned, seed=5) != first
    monkeypatch.setattr(statistics, "MAX_DRAWS_PER_BLOCK", 50 * 7)
    assert paired_difference(base, tuned, seed=4) == first


def test_flips_count_every_row_once():
    assert count_flips([1.0, 1.0, 1.0, 1.0], [0.5, 0.995, 1.005, 2.0], tie=0.01) == {
        "improved": 1,
        "tied": 2,
        "regressed": 1,
    }
