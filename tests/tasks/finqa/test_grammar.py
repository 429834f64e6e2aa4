"""The program grammar accepts all gold programs, and all that it accepts can be executed."""

import random
import re
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loratune.data import snapshot
from loratune.tasks.finqa.facts import build_page_facts
from loratune.tasks.finqa.grammar import (
    CONSTANTS,
    MAX_STEPS,
    ProgramGrammar,
    build_program_grammar,
    extract_numbers,
    find_usable_rows,
)
from loratune.tasks.finqa.program import (
    ARITHMETIC_OPERATIONS,
    TABLE_OPERATIONS,
    ProgramError,
    execute_program,
    execute_text,
    format_program,
    parse_program,
)

ROWS = [
    ["", "2010", "2009"],
    ["net sales", "$ 1,200", "$ -13 ( 13 )"],
    ["net", "4", "5"],
    ["tax , net ( all )", "20% ( 20 % )", "10%"],
    ["Umsatzerlöse €", "1", "2"],
    ["cash", "n/a", "3"],
    ["a ) b", "1", "2"],
    ["a, none) (b", "1", "2"],
    ["line\tbreak", "1", "2"],
]
USABLE = {"net sales", "net", "tax , net ( all )", "Umsatzerlöse €"}
PROMPT = "was 5 more than .5 or 57.3 % of $ 1,204,000 in 2009-2010 ?"
PROGRAMS = build_program_grammar(PROMPT, ROWS)
LETTERS = [bytes([byte]) for byte in sorted({*range(32, 127), *"é".encode()})]


def read(text: str, language: ProgramGrammar = PROGRAMS):
    return language.after(language.start, text.encode())


def is_in(text: str, language: ProgramGrammar = PROGRAMS) -> bool:
    place = read(text, language)
    return place is not None and language.is_complete(place)


@cache
def gold(split: str) -> list[tuple[dict, str]]:
    """The rows with a program, each with its question and page as text."""
    rows = [row for row in snapshot.read(f"finqa_{split}") if row["program"]]
    facts = [build_page_facts(row["pre_text"], row["post_text"], row["table"]) for row in rows]
    return [
        (row, "\n".join([row["question"], *found.values()])) for row, found in zip(rows, facts, strict=True)
    ]


def test_constants_equal_those_of_the_training_programs():
    used = {
        part
        for row in snapshot.read("finqa_train")
        for part in re.findall("const_\\w+", row["program"] or "")
    }
    assert used == set(CONSTANTS)


@pytest.mark.parametrize("split", ["dev", "test"])
def test_gold_programs_are_in_the_grammar_of_their_pages(split):
    """All but the two that name a row which is not there; every beginning of the others can be written."""
    outside = set()
    for row, shown in gold(split):
        language = build_program_grammar(shown, row["table"])
        if not is_in(row["program"], language):
            outside.add(row["id"])
            assert execute_text(row["program"], row["table"]) is None
            continue
        place = language.start
        for letter in row["program"]:
            place = language.after(place, letter.encode())
            assert place is not None
    assert len(outside) == (2 if split == "dev" else 0)


def test_dev_programs_are_in_the_grammar_of_their_gold_facts():
    """The shares in docs/finqa.md: 4 take a number from the question."""
    count = {"facts": 0, "facts and question": 0}
    rows = [row for row, _ in gold("dev") if row["gold_inds"]]
    for row in rows:
        facts = build_page_facts(row["pre_text"], row["post_text"], row["table"])
        text = "\n".join(facts[name] for name in row["gold_inds"] if name in facts)
        count["facts"] += is_in(row["program"], build_program_grammar(text, row["table"]))
        count["facts and question"] += is_in(
            row["program"], build_program_grammar(f"{row['question']}\n{text}", row["table"])
        )
    assert len(rows) == 862 and count == {"facts": 858, "facts and question": 862}


def test_shown_numbers_are_extracted():
    assert extract_numbers(PROMPT) == {"5", ".5", "57.3", "57.3%", "1204000", "2009", "2010", "-2010"}
    assert extract_numbers("$ -13 ( 13 ) and -5.0% ( 5.0 % )") == {
        "-13",
        "13",
        "-5.0%",
        "-5.0",
        "5.0",
        "5.0%",
    }
    assert extract_numbers("1,200 12,00 1,2345 \N{ARABIC-INDIC DIGIT TWO}") == {
        "1200",
        "12",
        "00",
        "1",
        "2345",
    }


def test_usable_rows_are_found():
    assert find_usable_rows(ROWS) == USABLE


@pytest.mark.parametrize(
    "text",
    [
        "add(5, .5)",
        "add(5, 57.3%), subtract(#0, -2010)",
        "multiply(1204000, const_m1), divide(#0, const_1000000), exp(#1, #0)",
        "table_max(net, none)",
        "table_sum(net sales, none), table_average(tax , net ( all ), none), divide(#0, #1)",
        "table_min(Umsatzerlöse €, none)",
        "greater(5, .5)",
        ", ".join(["add(5, 5)"] * MAX_STEPS),
    ],
)
def test_program_and_all_its_prefixes_are_in_the_grammar(text):
    assert is_in(text)
    whole = [end for end in range(len(text) + 1) if is_in(text[:end])]
    assert [format_program(parse_program(text)[:steps]) for steps in range(1, len(whole) + 1)] == [
        text[:end] for end in whole
    ]
    assert all(read(text[:end]) is not None for end in range(len(text) + 1))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("", "x"),
        ("", " add(5, 5)"),
        ("t", "he answer"),
        ("add(", "6"),
        ("add(5", "8"),
        ("add(57", ", 5)"),  # 57.3 may be written, 57 may not
        ("add(5,", "5)"),
        ("add(", "#0"),
        ("add(", "add(5, 5)"),
        ("add(5, 5), add(#", "1"),
        ("greater(5, 5), add(", "#0"),  # yes or no is no number
        ("add(5, 5)", "."),
        ("add(5, 5),", "add(5, 5)"),
        ("table_max(", "cash"),
        ("table_max(net, ", "all"),
        ("add(const_1", "1"),
        (", ".join(["add(5, 5)"] * MAX_STEPS), ","),
    ],
)
def test_invalid_prefix_is_refused(right, wrong):
    assert read(right) is not None
    assert read(right + wrong[0]) is None and read(right + wrong) is None


def test_no_table_operations_without_rows():
    language = build_program_grammar(PROMPT, None)
    assert read("table", language) is None and is_in("add(5, 5)", language)


PAGES = st.lists(
    st.sampled_from(["5", "-3.25%", "1,200", "$ 7", "2009-2010", ".5", "0", "words"]), max_size=4
).map(" ".join)
TABLES = st.lists(
    st.tuples(st.text("ab ,()é%0", max_size=6), st.sampled_from(["1", "$ 2", "3%", "-", "(4)"])).map(list),
    max_size=4,
)


def assert_executable(text: str, table) -> None:
    """Raises for all but arithmetic that fails."""
    program = parse_program(text)
    assert format_program(program) == text
    try:
        execute_program(program, table)
    except ProgramError as error:
        assert isinstance(error.__cause__, ArithmeticError) or "not a finite real number" in str(error)


@given(PAGES, TABLES, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_random_walk_ends_in_an_executable_program(page, table, random: random.Random):
    language = build_program_grammar(page, table)
    place, text = language.start, b""
    while not (language.is_complete(place) and random.random() < 0.3):
        ways = [letter for letter in LETTERS if language.after(place, letter) is not None]
        if not ways:
            break
        letter = random.choice(ways)
        place, text = language.after(place, letter), text + letter
    assert language.is_complete(place)  # there was a way on wherever no program ended
    assert_executable(text.decode(), table)


@given(PAGES, TABLES, st.randoms(use_true_random=False), st.lists(st.integers(0, 60), max_size=5))
@settings(max_examples=60, deadline=None)
def test_parsing_does_not_depend_on_token_boundaries(page, table, random: random.Random, cuts):
    language = build_program_grammar(page, table)
    operands = [*extract_numbers(page), *CONSTANTS, "6", "#0", "#9"]
    steps = [
        f"{random.choice(ARITHMETIC_OPERATIONS)}({random.choice(operands)}, {random.choice(operands)})"
        for _ in range(random.randint(1, 3))
    ]
    steps += [f"{random.choice(TABLE_OPERATIONS)}({row}, none)" for row, _ in table]
    text = ", ".join(steps).encode()
    place, start = language.start, 0
    for cut in [*sorted(cuts), len(text)]:
        place = place and language.after(place, text[start : max(cut, start)])
        start = max(cut, start)
    assert place == language.after(language.start, text)
