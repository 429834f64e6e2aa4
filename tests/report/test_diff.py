from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from loratune.report.diff import find_differences

TEXTS = (
    st.lists(
        st.sampled_from(["the", "robot", "is", "far", ",", " ", "\n", "日本", "<b>", "#0"]), max_size=30
    ).map("".join)
    | st.text()
)


@given(TEXTS, TEXTS)
def test_pieces_join_to_the_texts_and_share_the_same(first, second):
    ours, theirs = find_differences(first, second)
    assert "".join(piece.text for piece in ours) == first
    assert "".join(piece.text for piece in theirs) == second
    shared = ["".join(piece.text for piece in side if piece.shared) for side in (ours, theirs)]
    assert shared[0] == shared[1]
    assert all(one.shared != other.shared for side in (ours, theirs) for one, other in pairwise(side))


@given(TEXTS)
def test_a_text_does_not_differ_from_itself(text):
    ours, theirs = find_differences(text, text)
    assert ours == theirs and all(piece.shared for piece in ours)


def test_a_word_in_common_by_chance_is_no_common_part():
    ours, theirs = find_differences("It is warm in the far south today.", "Birds see the whole world daily.")
    assert [piece for piece in ours if piece.shared] == [(".", True)]  # where both end
    ours, theirs = find_differences("The profit rose by 5 % in 2019.", "The profit rose by 7 % in 2019.")
    assert [piece.text for piece in ours if not piece.shared] == ["5"]
    assert [piece.text for piece in theirs if not piece.shared] == ["7"]


def test_what_differs_in_other_scripts_is_a_word_or_a_letter():
    ours, theirs = find_differences("天空是蓝色的。", "天空是红色的。")
    assert [piece.text for side in (ours, theirs) for piece in side if not piece.shared] == ["蓝", "红"]
    ours, theirs = find_differences("यह हिन्दी है", "यह हिन्द है")
    assert [piece.text for side in (ours, theirs) for piece in side if not piece.shared] == ["हिन्दी", "हिन्द"]
