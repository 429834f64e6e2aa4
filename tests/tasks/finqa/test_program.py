"""FinQA's programs: all gold programs of the shipped data, parsing, results and equivalence."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loratune.data import snapshot
from loratune.tasks.finqa.equivalence import is_same_program
from loratune.tasks.finqa.facts import match_facts
from loratune.tasks.finqa.program import (
    ARITHMETIC_OPERATIONS,
    TABLE_OPERATIONS,
    ProgramError,
    Step,
    execute_program,
    execute_text,
    format_program,
    is_same_result,
    parse_program,
)
from support.deadline import enforce_deadline

REVENUE = [
    ["", "2010", "2009"],
    ["net sales", "$ 1,200", "$ -13 ( 13 )"],
    ["tax , net ( all )", "20% ( 20 % )", "10%"],
    ["cash", "n/a"],
    ["all cash of the world", "9" * 400],
    ["half of it", "9" * 308, "9" * 308],
]


@pytest.mark.parametrize(
    ("split", "agreeing", "programs"), [("train", 3335, 3337), ("dev", 881, 883), ("test", 1127, 1132)]
)
def test_gold_programs_give_the_gold_results(split, agreeing, programs):
    """Of the rest, all but the two that name a missing row have no recorded result."""
    rows = [row for row in snapshot.read(f"finqa_{split}") if row["program"]]
    assert len(rows) == programs
    assert (
        sum(is_same_result(execute_text(row["program"], row["table"]), row["exe_ans"]) for row in rows)
        == agreeing
    )
    for row in rows:
        assert format_program(parse_program(row["program"])) == row["program"]
        assert is_same_program(parse_program(row["program"]), parse_program(row["program"])), row["program"]


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("add(1, 2)", 3.0),
        ("subtract(5829, 5735), divide(#0, 5735)", 0.01639),
        ("divide(subtract(5829, 5735), 5735)", 0.01639),
        (
            "add(subtract(9, 4), 1), multiply(#0, 2)",
            12.0,
        ),  # #0 is the addition, not the subtraction inside it
        ("multiply(5%, 200)", 10.0),
        ("multiply(5 %, 200)", 10.0),
        ("add(1, 234)", 235.0),
        ("add(1,234)", 235.0),
        ("add(1,234, 5)", 1239.0),
        ("add(1,234.5, 2)", 1236.5),
        ("subtract(12,345,678, -1,234)", 12346912.0),
        ("divide(1,000%, 10)", 1.0),
        ("divide(1,000,10)", 100.0),  # 000 begins no number
        ("add(subtract(1,234, 34), 1,000), divide(#0, 2,200)", 1.0),
        ("divide(.5, const_m1)", -0.5),
        ("exp(2, const_10)", 1024.0),
        ("greater(1, 2)", "no"),
        ("greater(2, 1)", "yes"),
        ("table_max(net sales, none)", 1200.0),
        ("table_min(net sales, none)", -13.0),
        ("table_sum(net sales, none), divide(#0, 1187)", 1.0),
        ("table_average(tax , net ( all ), none)", 0.15),
        ("  add( 1 ,2 )  ", 3.0),
    ],
)
def test_programs_give_their_results(text, result):
    assert execute_program(parse_program(text), REVENUE) == result


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not of the form"),
        ("The answer is 42.", "not of the form"),
        ("add(1, 2", "no partner"),
        ("add(1, 2))", "no partner"),
        ("add(1)", "1 arguments; two are needed"),
        ("add(1, 2, 3)", "3 arguments"),
        ("add(1, two)", "'two' is not a number"),
        ("add(1, --2)", "'--2' is not a number"),
        ("add(1, \N{ARABIC-INDIC DIGIT TWO})", "is not a number"),
        ("power(1, 2)", "'power' is no operation"),
        ("multiply(5, $ 200)", r"'\$ 200' is not a number"),
        ("multiply($5, 200)", r"'\$5' is not a number"),
        ("multiply(5, 1 200)", "'1 200' is not a number"),
        ("multiply(5, - 3)", "'- 3' is not a number"),
        ("add(1,234,567)", "in several ways"),
        ("add(1, 234, 567)", "3 arguments"),
        ("add(0,123, 4)", "3 arguments"),
        ("add(1,23, 4)", "3 arguments"),
        ("add(1,234,)", "'' is not a number"),
        ("add(1, #0)", "#0 does not refer to an earlier operation"),
        ("add(1, 2), add(#1, 1)", "#1 does not refer"),
        ("add(1, 2), add(#-1, 1)", "#-1 does not refer"),
        ("add(1, 2) add(3, 4)", "no partner"),
        ("table_max(net sales)", "needs the name of a row"),
        ("table_max(, none)", "needs the name of a row"),
        ("add(" * 5000 + "1" + ", 1)" * 5000, "nested more than 50 deep"),
    ],
)
def test_invalid_program_is_explained(text, message):
    with pytest.raises(ProgramError, match=message):
        parse_program(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("divide(1, 0)", "division by zero"),
        ("exp(10, 1000)", "exp"),
        ("exp(-8, 0.5)", "not a finite real number"),
        (f"multiply({'9' * 200}, {'9' * 200})", "not a finite"),
        ("greater(1, 2), add(#0, 1)", "#0 is no, which cannot"),
        ("table_max(cash, none)", "'n/a' is not a number"),
        (f"add({'9' * 400}, 1)", "too large a number"),
        (f"add(const_m{'9' * 400}, 1)", "too large a number"),
        (f"greater({'9' * 400}, 1)", "too large a number"),
        ("table_max(all cash of the world, none)", "too large a number"),
        ("table_sum(half of it, none)", "not a finite real number"),
        ("table_average(half of it, none)", "not a finite real number"),
        ("table_max(profit, none)", "no such row"),
    ],
)
def test_program_without_a_result_is_explained(text, message):
    with pytest.raises(ProgramError, match=message):
        execute_program(parse_program(text), REVENUE)
    assert execute_text(text, REVENUE) is None


def test_table_is_needed_only_for_table_operations():
    assert execute_text("add(1, 2)") == 3
    assert execute_text("table_max(net sales, none)") is None


NUMBERS = st.one_of(
    st.integers(-(10**6), 10**6).map(str),
    st.decimals(-1000, 1000, places=2).map(str),
    st.integers(0, 100).map("{}%".format),
    st.sampled_from(["const_100", "const_m1", ".5"]),
)
ROW_NAMES = (
    st.text("abc ,-0", min_size=1)
    .map(lambda name: " ".join(name.split()))
    .filter(lambda name: name.strip(" ,"))
)


@st.composite
def programs(draw):
    steps = []
    for number in range(draw(st.integers(1, 6))):
        if draw(st.integers(0, 4)) == 0:
            steps.append(Step(draw(st.sampled_from(TABLE_OPERATIONS)), (draw(ROW_NAMES), "none")))
        else:
            operand = (
                st.one_of(NUMBERS, st.sampled_from([f"#{earlier}" for earlier in range(number)]))
                if number
                else NUMBERS
            )
            steps.append(Step(draw(st.sampled_from(ARITHMETIC_OPERATIONS)), (draw(operand), draw(operand))))
    return tuple(steps)


@given(programs())
def test_formatted_program_parses_to_itself(program):
    assert parse_program(format_program(program)) == program
    assert is_same_program(program, program) or "divide" in format_program(program)


def test_thousands_comma_is_parsed_and_currency_sign_is_not():
    assert [
        execute_text(text) for text in ("add(1,234, 5)", "add(1, 234)", "add($5, 1)", "add($ 1,234, 5)")
    ] == [
        1239,
        235,
        None,
        None,
    ]


def test_canonical_text_is_linear_without_thousands_commas():
    text = "divide(subtract( 1,234.50 ,5 %),const_m1)"
    assert format_program(parse_program(text)) == "subtract(1234.50, 5%), divide(#0, const_m1)"
    assert is_same_program(parse_program("add(1234, 5)"), parse_program("add(5,1,234)"))


@given(
    *2 * [st.integers(-(10**12), 10**12) | st.decimals(-(10**9), 10**9, places=2)],
    st.sampled_from(ARITHMETIC_OPERATIONS),
)
def test_thousands_commas_and_separators_are_told_apart(first, second, operation):
    plain = (Step(operation, (str(first), str(second))),)
    for one in (f"{first}", f"{first:,}"):
        for other in (f"{second}", f"{second:,}"):
            assert parse_program(f"{operation}({one}, {other})") == plain
            # Without a space, nothing else may be read.
            try:
                assert parse_program(f"{operation}({one},{other})") == plain
            except ProgramError as error:
                assert "in several ways" in str(error)
    assert parse_program(f"{operation}({first},{second})") == plain


@given(programs())
def test_nested_and_linear_forms_have_the_same_result(program):
    nested = []
    for step in program:
        parts = [nested[int(part[1:])] if part.startswith("#") else part for part in step.arguments]
        nested.append(f"{step.operation}({', '.join(parts)})")
    table = [[step.arguments[0], "3", "4"] for step in program if step.operation in TABLE_OPERATIONS]
    assert execute_text(nested[-1], table) == execute_text(format_program(program), table) or any(
        execute_text(text, table) is None for text in nested
    )


PIECES = [
    "add(",
    "subtract(",
    "divide(",
    "exp(",
    "greater(",
    "table_max(",
    "table_sum(",
    ", ",
    ")",
    "#0",
    "#1",
    "#9999",
]
PIECES += ["const_100", "const_m1", "5", "-.5%", "$ 1,200", "9" * 400, "0", "net sales", "cash", "none"]
PIECES += ["\x00", "\ud800", "\u0662", " ", "\n", "a" * 300, "(" * 60]
JOINED = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
WRITTEN = st.text() | st.text("add(subtract,#012 none table_max)%$-.") | JOINED


def check_text(text: str, other: str) -> None:
    with enforce_deadline():
        result = execute_text(text, REVENUE)
        assert result is None or result in ("yes", "no") or math.isfinite(result)
        try:
            assert isinstance(is_same_program(parse_program(text), parse_program(other)), bool)
            assert parse_program(format_program(parse_program(text))) == parse_program(text)
        except ProgramError as error:
            assert str(error)


@pytest.mark.parametrize("count", [500, pytest.param(20_000, marks=pytest.mark.slow)])
def test_any_text_parses_or_raises_program_error(count):
    settings(max_examples=count, deadline=None, database=None)(given(WRITTEN, WRITTEN)(check_text))()


@pytest.mark.parametrize(
    "text",
    [
        "a" * 10**6,
        "a" * 10**6 + "(",
        "add" + " " * 10**6,
        "add(" * 10**5,
        ")" * 10**6,
        "," * 10**5,
        "add(1, " + "9" * 10**6 + ")",
        "add(1, 2), " * 10**4 + "add(#0, 1)",
        "add(" + "const_" * 10**5 + ", 1)",
        "table_max(" + ",(" * 10**5,
        "add(" + "1," * 10**5 + "1)",
        "add(1" + ",000" * 10**5 + ", 1)",
    ],
    ids=lambda text: text[:12],
)
def test_long_texts_are_parsed_quickly(text):
    with enforce_deadline():
        execute_text(text, REVENUE)
        is_in_facts = match_facts(text, {"text_0": text[:1000]})
    assert isinstance(is_in_facts, set)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("add(3, 5)", "add(5, 3)", True),
        ("subtract(3, 5)", "subtract(5, 3)", False),
        (
            "subtract(9, 4), divide(#0, 4)",
            "divide(9, 4), subtract(#0, const_1)",
            False,
        ),  # const_1 is not in the first
        (
            "subtract(9, 4), divide(#0, 4), add(#1, 9)",
            "divide(9, 4), divide(4, 4), subtract(#0, #1), add(#2, 9)",
            True,
        ),
        ("multiply(2, 4)", "add(4, 4)", False),
        ("divide(8, 4)", "subtract(8, 4)", False),
        ("divide(8, 100)", "divide(8, const_100)", False),
        ("add(1, 2), add(#0, 3)", "add(2, 3), add(1, #0)", True),
        ("exp(2, 3)", "exp(2, 3)", True),
        ("exp(2, 3)", "exp(3, 2)", False),
        ("greater(2, 3)", "greater(3, 2)", False),
        ("table_sum(a, none), divide(#0, 3)", "divide(table_sum(a, none), 3)", True),
        ("table_sum(a, none)", "table_max(a, none)", False),
    ],
)
def test_program_equivalence(first, second, same):
    assert is_same_program(parse_program(first), parse_program(second)) is same


def test_results_are_compared_to_five_decimals():
    assert is_same_result(0.123454, 0.12345)
    assert not is_same_result(0.1235, 0.1234)
    assert is_same_result("yes", "yes") and not is_same_result("yes", 1.0) and not is_same_result(None, None)
