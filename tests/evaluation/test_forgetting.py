"""Plain text in windows: nothing lost, nothing twice, and what the shipped text is."""

from hypothesis import given
from hypothesis import strategies as st

from loratune.data import snapshot
from loratune.evaluation.forgetting import Prose, cut_windows, draw_windows, load_prose
from support.bpe_tokenizer import small_tokenizer
from support.small_tokenizers import build_tokenizer

TOKENIZER = small_tokenizer()


@given(st.lists(st.integers(0, 99), max_size=60), st.integers(2, 20))
def test_windows_make_up_the_text(ids, length):
    windows = list(cut_windows(ids, length))
    joined = [token for window in windows for token in window]
    # A last window of one token would have nothing to predict.
    assert joined == ids[: len(joined)] and len(ids) - len(joined) <= 1
    assert all(2 <= len(window) <= length for window in windows)
    assert all(len(window) == length for window in windows[:-1])


@given(
    st.lists(st.text(alphabet="an swer", min_size=2, max_size=80), min_size=1, max_size=5),
    st.integers(1, 9),
    st.integers(0, 3),
)
def test_windows_are_drawn_in_order_and_never_twice(passages, most, seed):
    def drawn(count: int):
        return draw_windows(
            Prose("mine", [*passages, "the answer is"], count), TOKENIZER, max_positions=8, seed=seed
        )

    some, everything = drawn(most), drawn(1000)
    assert len(some) == min(most, len(everything))
    places = [int(window.id) for window in some]
    assert places == sorted(set(places)) and some == [everything[place] for place in places] == drawn(most)
    assert all(window.prompt == [] and len(window.response) <= 8 for window in everything)


def test_with_bos_each_window_begins_with_it_and_is_no_longer():
    tokenizer = build_tokenizer("byte-level", front="<s>")
    windows = draw_windows(
        Prose("mine", ["the answer is none, " * 9], max_windows=99), tokenizer, max_positions=8, seed=0
    )
    assert len(windows) > 2 and all(window.prompt == tokenizer.bos for window in windows)
    assert {len(window.prompt) + len(window.response) for window in windows[:-1]} == {8}
    assert (
        tokenizer.decode([token for window in windows for token in window.response])
        == "the answer is none, " * 9
    )


def test_the_built_in_text_is_of_test_pages_without_their_questions():
    prose = load_prose(None)
    rows = snapshot.read("finqa_test")
    assert len(prose.passages) == len({row["id"].rpartition("-")[0] for row in rows}) == 380
    assert prose.passages[0].startswith(rows[0]["pre_text"][0]) and prose.passages[0].endswith(
        rows[0]["post_text"][-1]
    )
    everything = "\n".join(prose.passages)
    assert not any(row["question"] in everything for row in rows)
