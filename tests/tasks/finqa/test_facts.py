"""The facts of a page: their texts, their order and their selection."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratune.tasks.finqa.facts import (
    build_page_facts,
    format_facts,
    format_row,
    get_row_name,
    match_facts,
    put_first,
    select_best_facts,
)

TABLE = [["in millions", "2008", "2007"], ["revenue", "$ 120", "$ 100"], ["cost of sales", "70", "60"]]
FACTS = build_page_facts(
    ["the company sells shoes .", "it was founded in 1920 ."], ["the tax rate was 21% in 2008 ."], TABLE
)


@pytest.mark.parametrize(
    ("header", "row", "text"),
    [
        (
            ["december 31,", "annual maturities ( in millions )"],
            ["2015", "851"],
            "2015 | annual maturities ( in millions ) : 851",
        ),
        (["", "2010", "2009"], ["revenue", "$ 2111", "$ 1267"], "revenue | 2010 : $ 2111 ; 2009 : $ 1267"),
        (
            ["", "2010", "2009"],
            ["loss", "$ -94.5 ( 94.5 )", "( 12 )"],
            "loss | 2010 : $ -94.5 ; 2009 : ( 12 )",
        ),
        (["", "2010", "2009"], ["tax", "10% ( 10 % )", "3 (  4 )"], "tax | 2010 : 10% ; 2009 : 3 ( 4 )"),
        (["", "2010", "2009"], ["tax", ""], "tax | 2010 :"),
        ([], ["tax"], ""),
    ],
)
def test_row_text_names_its_columns_without_repetition(header, row, text):
    assert format_row(header, row) == text


def test_row_text_starts_with_its_name():
    assert get_row_name(format_row(["", "2008"], ["cost of sales", "70"])) == "cost of sales"


def test_facts_are_in_page_order_with_finqa_ids():
    assert list(FACTS) == ["text_0", "text_1", "table_0", "table_1", "table_2", "text_2"]
    assert format_facts(FACTS, {"text_2", "table_1"}) == (
        "revenue | 2008 : $ 120 ; 2007 : $ 100\nthe tax rate was 21% in 2008 ."
    )


def test_program_numbers_and_rows_match_their_facts():
    assert match_facts("subtract(120, 100), divide(#0, 100)", FACTS) == {"table_1"}
    assert match_facts("multiply(-120, 21%)", FACTS) == {"table_1", "text_2"}
    assert match_facts("table_max(cost of sales, none)", FACTS) == {"table_2"}
    assert match_facts("divide(#0, const_100)", FACTS) == set()


names = st.lists(st.sampled_from([f"text_{number}" for number in range(12)]), unique=True, min_size=1)


@given(names, st.data(), st.integers(1, 60))
def test_best_fitting_facts_are_selected(ranked, data, limit):
    lengths = {name: data.draw(st.integers(1, 30)) for name in ranked}
    kept = select_best_facts(ranked, lengths, limit)
    used = sum(lengths[name] for name in kept)
    assert ranked[0] in kept
    assert used <= limit or kept == {ranked[0]}
    # Nothing better was left out in favour of something worse, unless it did not fit when its turn came.
    for place, name in enumerate(ranked):
        if name not in kept:
            assert sum(lengths[better] for better in ranked[:place] if better in kept) + lengths[name] > limit


@given(names, names)
def test_put_first_keeps_all_facts(first, ranked):
    order = put_first(first, ranked)
    assert sorted(order) == sorted({*first, *ranked})
    assert set(order[: len(first)]) == set(first)
