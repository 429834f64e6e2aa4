"""Base against tuned on the same rows: what `evaluation.json` holds for all rows and for each source."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loratune.evaluation.likelihood import means
from loratune.evaluation.statistics import flips, paired_difference

TIE = 0.01  # nats a token: a row's loss that changes by less is tied


@dataclass(frozen=True)
class RowLoss:
    """The likelihood of one row's response."""

    base: float  # negative log-likelihood in nats
    tuned: float
    targets: int  # tokens
    size: int  # bytes of text


@dataclass(frozen=True)
class RowScores:
    """The scores of both answers to one row; both have the same names."""

    base: dict[str, float]
    tuned: dict[str, float]
    facts: str | None = None  # of a FinQA row: gold or retrieved


def compared(losses: Sequence[RowLoss], scores: Sequence[RowScores], seed: int) -> dict:
    """`base`, `tuned`, their `difference` with intervals, and how many rows improved."""
    loss, answers = compared_losses(losses, seed), compared_scores(scores, seed)
    parts = {part: loss[part] | answers[part] for part in ("base", "tuned", "difference")}
    return {"rows": len(losses), "answered_rows": len(scores), **parts, **flipped(losses)}


def compared_losses(losses: Sequence[RowLoss], seed: int) -> dict[str, dict]:
    base, tuned, targets, size = (
        np.array([getattr(row, name) for row in losses], dtype=float) for name in ("base", "tuned", "targets", "size")
    )
    return {
        "base": means(base, targets, size),
        "tuned": means(tuned, targets, size),
        "difference": {
            "nll": paired_difference(base, tuned, targets, seed),
            "bits_per_byte": paired_difference(base / math.log(2), tuned / math.log(2), size, seed),
        },
    }


def flipped(losses: Sequence[RowLoss]) -> dict:
    base, tuned = ([getattr(row, name) / row.targets for row in losses] for name in ("base", "tuned"))
    return {**flips(base, tuned, TIE), "tie_threshold": TIE}


def compared_scores(scores: Sequence[RowScores], seed: int) -> dict[str, dict]:
    """Means over the rows that a score applies to; a score that applies to none is absent."""
    parts: dict[str, dict] = {"base": {}, "tuned": {}, "difference": {}}
    for name in dict.fromkeys(name for row in scores for name in row.base):
        pairs = [(row.base[name], row.tuned[name]) for row in scores if name in row.base]
        base, tuned = zip(*pairs, strict=True)
        parts["base"][name] = sum(base) / len(base)
        parts["tuned"][name] = sum(tuned) / len(tuned)
        parts["difference"][name] = paired_difference(base, tuned, seed=seed)
    if facts := {row.facts for row in scores if "execution_accuracy" in row.base and row.facts}:
        named = {"facts": facts.pop() if len(facts) == 1 else "gold and retrieved"}
        parts["base"] |= named
        parts["tuned"] |= named
    return parts
