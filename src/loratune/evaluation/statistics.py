"""How sure is a difference between two models that were measured on the same rows?"""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
MAX_DRAWS_AT_ONCE = 2_000_000  # row numbers drawn at the same time, to bound the memory
COVERAGE = 0.95


def paired_difference(base, tuned, weights=None, seed: int = 0) -> dict:
    """Tuned minus base, with a 95 % interval from the paired bootstrap (Efron & Tibshirani 1993, chapter 13).

    `base` and `tuned` hold a number for each row. With `weights`, the statistic is sum / sum of weights, such
    as the loss of a token: whole rows are drawn again and so is the ratio. Same seed, same interval.
    """
    change = np.asarray(tuned, dtype=np.float64) - np.asarray(base, dtype=np.float64)
    weights = np.ones_like(change) if weights is None else np.asarray(weights, dtype=np.float64)
    tail = 100 * (1 - COVERAGE) / 2
    low, high = np.percentile(resample_ratios(change, weights, seed), (tail, 100 - tail))
    return {"mean": float(change.sum() / weights.sum()), "interval": [float(low), float(high)]}


def resample_ratios(sums: np.ndarray, weights: np.ndarray, seed: int) -> np.ndarray:
    """[resamples]: sum / sum of weights over rows drawn with replacement."""
    generator, rows, ratios = np.random.default_rng(seed), len(sums), []
    left = RESAMPLES
    while left:
        count = min(left, max(MAX_DRAWS_AT_ONCE // rows, 1))
        drawn = generator.integers(rows, size=(count, rows))
        ratios.append(sums[drawn].sum(1) / weights[drawn].sum(1))
        left -= count
    return np.concatenate(ratios)


def count_flips(base, tuned, tie: float) -> dict[str, int]:
    """Rows where a loss fell by more than `tie` (improved), rose by more (regressed), or neither (tied)."""
    change = np.asarray(tuned, dtype=np.float64) - np.asarray(base, dtype=np.float64)
    improved, regressed = int((change < -tie).sum()), int((change > tie).sum())
    return {"improved": improved, "tied": len(change) - improved - regressed, "regressed": regressed}


def mean_and_deviation(values: Sequence[float]) -> dict[str, float]:
    """Their mean and sample standard deviation (n - 1)."""
    return {"mean": float(np.mean(values)), "standard_deviation": float(np.std(values, ddof=1))}
