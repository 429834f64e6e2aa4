"""Measures of an answer's text."""

from collections.abc import Sequence
from functools import cache


def rouge_l(answer: str, reference: str) -> float:
    """F-measure of the longest common subsequence of stemmed words, 0 to 1 (Lin 2004, "ROUGE", section 3)."""
    return scorer().score(reference, answer)["rougeL"].fmeasure


@cache
def scorer():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


def rep_4(ids: Sequence[int]) -> float:
    """The share of the answer's token 4-grams that occurred in it before, 0 to 1 (Welleck et al. 2020; arXiv:1908.04319)."""
    grams = [tuple(ids[start : start + 4]) for start in range(len(ids) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
