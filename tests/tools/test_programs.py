"""Programs that were only found: they give the recorded result, from numbers of the page."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratune.data import snapshot
from loratune.tasks.finqa.equivalence import is_same_program
from loratune.tasks.finqa.facts import build_page_facts
from loratune.tasks.finqa.program import (
    execute_program,
    execute_text,
    format_program,
    is_same_result,
    parse_number,
    parse_program,
)
from tools.programs import (
    NUMPY_OPERATIONS,
    FormStatistics,
    count_placeholders,
    evaluate_form,
    extract_form,
    extract_numbers,
    fill_placeholders,
    find_program,
    has_numbers,
)

CHANGE = "subtract({}, {}), divide(#0, {})"
KNOWN = [
    *[("what is the percent change in sales from 2011 to 2012?", parse_program(CHANGE.format(8, 5, 5)))] * 6,
    *[("what is the sum of rent and fuel?", parse_program("add(1, 2)"))] * 6,
    *[("what is the ratio of debt to equity?", parse_program("divide(1, 2)"))] * 6,
]
FACTS = {"text_0": "we have plants in 14 countries .", "table_1": "sales | 2012 : $ 536.7 ; 2011 : $ 521.9"}


def test_the_usual_form_over_the_numbers_of_the_page_is_found():
    found = find_program(
        "what is the percent change in sales from 2011 to 2012?", FACTS, 0.02836, FormStatistics.of(KNOWN)
    )
    assert format_program(found) == CHANGE.format(536.7, 521.9, 521.9)


def test_nothing_is_found_where_no_form_gives_the_result():
    assert (
        find_program("what is the percent change in sales?", FACTS, 123.45678, FormStatistics.of(KNOWN))
        is None
    )
    assert (
        find_program(
            "what is the percent change in sales?",
            {"text_0": "no number here ."},
            1.0,
            FormStatistics.of(KNOWN),
        )
        is None
    )


def test_two_meanings_that_are_as_likely_are_no_find():
    facts = {
        "text_0": "the rent is 31.5 and the fuel is 11.25 .",
        "text_1": "the rent is 21.5 and the fuel is 21.25 .",
    }
    forms = FormStatistics.of([("what is the sum of rent and fuel?", parse_program("add(1, 2)"))] * 3)
    assert (
        find_program("what is the sum of rent and fuel?", {"text_0": facts["text_0"]}, 42.75, forms)
        is not None
    )
    assert find_program("what is the sum of rent and fuel?", facts, 42.75, forms) is None


@st.composite
def forms_of_two_or_three(draw):
    """Programs as FinQA writes them, with a number or an earlier result in each place."""
    steps = []
    for number in range(draw(st.integers(1, 3))):
        choices = [st.just("7"), st.just("const_100"), *([st.just(f"#{number - 1}")] if number else [])]
        steps.append(
            f"{draw(st.sampled_from(sorted(NUMPY_OPERATIONS)))}({draw(st.one_of(choices))}, "
            f"{draw(st.one_of(choices))})"
        )
    return extract_form(parse_program(", ".join(steps)))


@given(
    forms_of_two_or_three(),
    st.lists(st.sampled_from(["3", "4.5", "12%", "-8"]), min_size=2, max_size=3, unique=True),
)
def test_vectorised_forms_equal_single_programs(form, numbers):
    if count_placeholders(form) not in (1, 2, 3):
        return
    together = evaluate_form(form, np.array([parse_number(text) for text in numbers]))
    assert together.shape == (len(numbers),) * count_placeholders(form)
    for choice in np.ndindex(together.shape):
        program = fill_placeholders(form, [numbers[index] for index in choice])
        if (alone := execute_text(format_program(program))) is not None:  # None: a division by zero
            assert alone == pytest.approx(together[choice], abs=1e-5)


def test_found_programs_give_the_recorded_results():
    rows = [row for row in snapshot.read("finqa_train") if "found_program" in row]
    assert len(rows) > 1000 and not any(row["program"] for row in rows)
    for row in rows:
        program = parse_program(row["found_program"])
        assert is_same_result(execute_program(program, row["table"]), round(row["exe_ans"], 5)), row["id"]
        assert has_numbers(build_page_facts(row["pre_text"], row["post_text"], row["table"]), program), row[
            "id"
        ]


def test_no_held_out_question_has_a_found_program():
    assert not any(
        "found_program" in row for split in ("dev", "test") for row in snapshot.read(f"finqa_{split}")
    )


def test_most_found_programs_are_right():
    """On known programs, with the forms of the others: equal as functions of the same numbers."""
    known = [
        row
        for row in snapshot.read("finqa_train")
        if row["program"] and isinstance(row["exe_ans"], int | float)
    ]
    forms, found = (
        FormStatistics.of([(row["question"], parse_program(row["program"])) for row in known[::2]]),
        [],
    )
    for row in known[1:161:2]:
        facts = build_page_facts(row["pre_text"], row["post_text"], row["table"])
        if program := find_program(row["question"], facts, row["exe_ans"], forms):
            found.append(is_same_program(parse_program(row["program"]), program))
    assert len(found) > 45 and sum(found) / len(found) > 0.8


def test_numbers_are_extracted_as_written():
    assert extract_numbers("a loss of $ -1,234.5 or 12% ( 12 % )") == ["1234.5", "-1234.5", "12%", "12"]
