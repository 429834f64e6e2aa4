"""Compute confidence intervals of the differences between two models on the same rows."""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
MAX_DRAWS_PER_BLOCK = 2_000_000  # row numbers drawn at a time, which bounds the memory
COVERAGE = 0.95


def paired_difference(base, tuned, weights=None, seed: int = 0) -> dict:
    """Compute tuned minus base with a 95 % interval from the paired bootstrap.

    Efron & Tibshirani 1993, chapter 13. Whole rows are drawn, and each draw gives a ratio of sums.

    Args:
        base: [rows], one value for each row.
        tuned: [rows].
        weights: [rows]; the statistic is the sum divided by the sum of weights, such as the loss of a token.
            None weighs all rows alike.
        seed: of the draws; the same seed gives the same interval.

    Returns:
        `mean` and `interval`.
    """
    change = np.asarray(tuned, dtype=np.float64) - np.asarray(base, dtype=np.float64)
    weights = np.ones_like(change) if weights is None else np.asarray(weights, dtype=np.float64)
    tail = 100 * (1 - COVERAGE) / 2
    low, high = np.percentile(resample_ratios(change, weights, seed), (tail, 100 - tail))
    return {"mean": float(change.sum() / weights.sum()), "interval": [float(low), float(high)]}


def resample_ratios(sums: np.ndarray, weights: np.ndarray, seed: int) -> np.ndarray:
    """Return the sum divided by the sum of weights for each resample, [resamples].

    A resample draws as many rows as there are, with replacement.
    """
    generator, rows, ratios = np.random.default_rng(seed), len(sums), []
    remaining = RESAMPLES
    while remaining:
        count = min(remaining, max(MAX_DRAWS_PER_BLOCK // rows, 1))
        drawn = generator.integers(rows, size=(count, rows))
        ratios.append(sums[drawn].sum(1) / weights[drawn].sum(1))
        remaining -= count
    return np.concatenate(ratios)


def count_flips(base, tuned, tie: float) -> dict[str, int]:
    """Count the rows whose loss fell by more than `tie` (improved), rose by more (regressed), or neither."""
    change = np.asarray(tuned, dtype=np.float64) - np.asarray(base, dtype=np.float64)
    improved, regressed = int((change < -tie).sum()), int((change > tie).sum())
    return {"improved": improved, "tied": len(change) - improved - regressed, "regressed": regressed}


def mean_and_deviation(values: Sequence[float]) -> dict[str, float]:
    """Return the mean and the sample standard deviation (n - 1)."""
    return {"mean": float(np.mean(values)), "standard_deviation": float(np.std(values, ddof=1))}
