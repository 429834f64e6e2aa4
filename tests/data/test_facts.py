import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratune.data.facts import page_facts, put_first, row_sentence, shown, using_numbers, within

TABLE = [["in millions", "2008", "2007"], ["revenue", "$ 120", "$ 100"], ["cost of sales", "70", "60"]]
FACTS = page_facts(["the company sells shoes .", "it was founded in 1920 ."], ["the tax rate was 21% in 2008 ."], TABLE)


@pytest.mark.parametrize(
    ("header", "row", "sentence"),
    [  # as FinQA's own gold facts have them, with their changes to spaces
        (
            ["december 31,", "annual maturities ( in millions )"],
            ["2015", "851"],
            "december 31 , the 2015 of annual maturities ( in millions ) is 851 ;",
        ),
        (
            ["calendar year:", "pre-tax catastrophe losses"],
            ["2010", "$ 571.1"],
            "calendar year : the 2010 of pre-tax catastrophe losses is $ 571.1 ;",
        ),
        (
            ["company", "volume ( billions )", "cards ( millions )"],
            ["visa inc. ( 1 )", "$ 2727", ""],
            "company the visa inc . ( 1 ) of volume ( billions ) is $ 2727 ; the visa inc . ( 1 ) of cards ( millions ) is ;",
        ),
        (
            ["", "2010", "2009"],
            ["revenue", "$ 2111", "$ 1267"],
            "the revenue of 2010 is $ 2111 ; the revenue of 2009 is $ 1267 ;",
        ),
    ],
)
def test_a_row_becomes_finqas_own_sentence(header, row, sentence):
    assert row_sentence(header, row) == sentence


def test_facts_stand_in_the_order_of_the_page_under_finqas_names():
    assert list(FACTS) == ["text_0", "text_1", "table_0", "table_1", "table_2", "text_2"]
    assert shown(FACTS, {"text_2", "table_1"}) == (
        "in millions the revenue of 2008 is $ 120 ; the revenue of 2007 is $ 100 ;\nthe tax rate was 21% in 2008 ."
    )


def test_numbers_and_rows_of_a_program_point_to_their_facts():
    assert using_numbers("subtract(120, 100), divide(#0, 100)", FACTS) == {"table_1"}
    assert using_numbers("multiply(120, 21%)", FACTS) == {"table_1", "text_2"}
    assert using_numbers("table_max(cost of sales, none)", FACTS) == {"table_2"}
    assert using_numbers("divide(#0, const_100)", FACTS) == set()


names = st.lists(st.sampled_from([f"text_{number}" for number in range(12)]), unique=True, min_size=1)


@given(names, st.data(), st.integers(1, 60))
def test_what_fits_is_kept_best_first(ranked, data, limit):
    lengths = {name: data.draw(st.integers(1, 30)) for name in ranked}
    kept = within(ranked, lengths, limit)
    used = sum(lengths[name] for name in kept)
    assert ranked[0] in kept
    assert used <= limit or kept == {ranked[0]}
    # Nothing better was left out in favour of something worse, unless it did not fit when its turn came.
    for place, name in enumerate(ranked):
        if name not in kept:
            assert sum(lengths[better] for better in ranked[:place] if better in kept) + lengths[name] > limit


@given(names, names)
def test_putting_facts_first_loses_none(first, ranked):
    order = put_first(first, ranked)
    assert sorted(order) == sorted({*first, *ranked})
    assert set(order[: len(first)]) == set(first)
