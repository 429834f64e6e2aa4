from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from loratune.data import snapshot
from loratune.evaluation.text_metrics import distinct_2, rep_4, rouge_l

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


PACKAGE = RougeScorer(["rougeL"], use_stemmer=True)
ENGLISH = st.lists(
    st.sampled_from(
        ["the", "running", "runner", "Nationally", "nation's", "3.5", "don't", "snake_case", "_", "\n"]
    ),
    max_size=12,
)


@given(*2 * [st.text(st.characters(max_codepoint=127)) | ENGLISH.map(" ".join)])
def test_rouge_l_of_ascii_text_is_that_of_the_package(answer, reference):
    assert rouge_l(answer, reference) == PACKAGE.score(reference, answer)["rougeL"].fmeasure


def test_rouge_l_of_dolly_is_that_of_the_package():
    rows = snapshot.read("dolly")[::30]
    english = [row["response"][:1500] for row in rows if row["response"].isascii()]
    assert len(english) > 400
    for answer, reference in pairwise(english):
        assert rouge_l(answer, reference) == PACKAGE.score(reference, answer)["rougeL"].fmeasure


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("आकाश नीला है", "आकाश नीला है।", 1),
        ("आकाश लाल है", "आकाश नीला है", 2 / 3),
        ("天空是红色", "天空是蓝色", 4 / 5),
        ("Die Tür", "die TÜR", 1),
        ("Tur", "Tür", 0),
        ("ответ верный", "неверный ответ", 1 / 2),
        (
            "the answer is 天空",
            "answers: 天空",
            2 * 1 * 0.6 / 1.6,
        ),  # answer 天 空; "answers" has the stem of "answer"
        ("天空", "sky", 0),
        ("👍", "👍", 0),
    ],
)
def test_rouge_l_of_any_script(answer, reference, expected):
    assert rouge_l(answer, reference) == pytest.approx(expected)


@given(ANSWERS)
def test_distinct_2_counts_pairs_that_did_not_come_before(answers):
    pairs = [(ids[place], ids[place + 1]) for ids in answers for place in range(len(ids) - 1)]
    new = sum(pair not in pairs[:place] for place, pair in enumerate(pairs))
    assert distinct_2(answers) == (pytest.approx(new / len(pairs)) if pairs else 0)


@given(ANSWERS)
def test_distinct_2_is_of_the_set_not_a_mean_over_answers(answers):
    assert distinct_2(answers + answers) == pytest.approx(distinct_2(answers) / 2)
    assert distinct_2(answers[::-1]) == distinct_2(answers)
