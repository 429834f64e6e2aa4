import pytest

from loratune.evaluation.text import rep_4, rouge_l


def test_rep_4_by_hand():
    assert rep_4([1, 2, 3]) == 0
    assert rep_4([1, 2, 3, 4, 5, 6]) == 0
    assert rep_4([7] * 13) == pytest.approx(0.9)  # ten 4-grams, one of its kind
    assert rep_4([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(0.2)  # 1234 2341 3412 4123 1234


def test_rouge_l_by_hand():
    assert rouge_l("the cat sat", "the cat sat") == 1
    assert rouge_l("", "the cat") == 0
    # Longest common subsequence "the cat on": precision 3/4, recall 3/5.
    assert rouge_l("the cat is on", "the cat sat on mats") == pytest.approx(2 * 0.75 * 0.6 / 1.35)
