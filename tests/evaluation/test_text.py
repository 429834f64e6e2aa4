import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratune.evaluation.text import distinct_2, rep_4, rouge_l

ANSWERS = st.lists(st.lists(st.integers(0, 4), max_size=9), max_size=6)


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


@given(ANSWERS)
def test_distinct_2_counts_pairs_that_did_not_come_before(answers):
    pairs = [(ids[place], ids[place + 1]) for ids in answers for place in range(len(ids) - 1)]
    new = sum(pair not in pairs[:place] for place, pair in enumerate(pairs))
    assert distinct_2(answers) == (pytest.approx(new / len(pairs)) if pairs else 0)


@given(ANSWERS)
def test_distinct_2_is_of_the_set_not_a_mean_over_answers(answers):
    assert distinct_2(answers + answers) == pytest.approx(distinct_2(answers) / 2)
    assert distinct_2(answers[::-1]) == distinct_2(answers)
