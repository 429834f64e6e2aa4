"""FinQA's programs about one page as a language that an answer can be held to (see `generation.constraint`).

A program is written in its linear form, `subtract(5829, 5735), divide(#0, 5735)`. Its numbers stand in the
prompt or are constants, `#n` is the result of an earlier step, and operations on the table take rows of
numbers. So each of these texts can be read and carried out, unless its arithmetic fails, as in a division by
zero; and each beginning of one can be finished.
"""

import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from loratune.tasks.finqa.program import (
    ARITHMETIC_OPERATIONS,
    TABLE_OPERATIONS,
    ProgramError,
    Step,
    Table,
    execute_program,
    parse_program,
    split_at_commas,
)

# All that occur in the training programs of the shipped data; no other one occurs in dev or test.
CONSTANTS = tuple(
    f"const_{value}" for value in (*range(1, 11), 100, 1000, 100_000, 1_000_000, 1_000_000_000, "m1")
)
MAX_STEPS = 8  # the gold programs have at most 5; a limit ends what would go on for ever
SHOWN_NUMBER = re.compile(r"(-?)((?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(\s?%)?")


class GrammarState(NamedTuple):
    """How far a program was read."""

    expected: str = "operation"  # or first, second (operand), row, comma (after a step)
    prefix: bytes = b""  # of what is expected
    operation: bytes = b""  # of the step that was begun
    results: tuple[bool, ...] = ()  # of the finished steps: is it a number, which `#n` can stand for?


class ProgramGrammar:
    """The language of all programs with these numbers, as the programs write them, and these rows of a table.

    A program is one word after another, each from a set that the words before it decide. A word is held with
    what must follow it, so that none begins with another one and there is one way to read a text. No set is
    empty, for there are always constants, so whatever was begun can be finished; only after the last step
    that is allowed no word follows.
    """

    start = GrammarState()

    def __init__(self, numbers: Collection[str], rows: Collection[str]):
        operands = {*numbers, *CONSTANTS}
        self.words = {
            "operation": encode_sorted(
                f"{name}("
                for name in (ARITHMETIC_OPERATIONS + TABLE_OPERATIONS if rows else ARITHMETIC_OPERATIONS)
            ),
            "first": encode_sorted(f"{operand}, " for operand in operands),
            "second": encode_sorted(f"{operand})" for operand in operands),
            "row": encode_sorted(f"{name}, none)" for name in rows),
            "comma": [b", "],
        }

    def after(self, place: GrammarState, piece: bytes) -> GrammarState | None:
        """Where a reader stands after `piece`, too; None where no program goes on like that."""
        place, rest = place._replace(prefix=b""), place.prefix + piece
        while rest:
            words = self.list_expected_words(place, rest)
            nearest = bisect_right(words, rest)
            if nearest and rest.startswith(words[nearest - 1]):
                word = words[nearest - 1]
                place, rest = advance_state(place, word), rest[len(word) :]
            elif nearest < len(words) and words[nearest].startswith(rest):
                return place._replace(prefix=rest)
            else:
                return None
        return place

    def is_complete(self, place: GrammarState) -> bool:
        return place.expected == "comma" and not place.prefix

    def list_expected_words(self, place: GrammarState, rest: bytes) -> Sequence[bytes]:
        """In order; of operands, either the numbers or the references, as `rest` begins."""
        if place.expected == "comma" and len(place.results) == MAX_STEPS:
            return []
        if place.expected in ("first", "second") and rest.startswith(b"#"):
            end = ", " if place.expected == "first" else ")"
            return encode_sorted(f"#{step}{end}" for step, is_number in enumerate(place.results) if is_number)
        return self.words[place.expected]


def advance_state(place: GrammarState, word: bytes) -> GrammarState:
    """Where the reader stands when a word is complete."""
    match place.expected:
        case "operation":
            operation = word[:-1]
            return place._replace(
                expected="row" if operation.decode() in TABLE_OPERATIONS else "first", operation=operation
            )
        case "first":
            return place._replace(expected="second")
        case "comma":
            return place._replace(expected="operation")
        case _:  # the step is finished
            return GrammarState("comma", results=(*place.results, place.operation != b"greater"))


def encode_sorted(words: Iterable[str]) -> list[bytes]:
    return sorted(word.encode() for word in words)


def build_program_grammar(prompt: str, table: Table | None) -> ProgramGrammar:
    """The programs with the numbers that are shown in a prompt, question and facts, and with the rows of the
    page's table.
    """
    return ProgramGrammar(extract_numbers(prompt), find_usable_rows(table or []))


def extract_numbers(text: str) -> set[str]:
    """As programs write them: without commas, with a % where one is shown, and without it.

    A number is taken with its minus and without: it may be a hyphen, as in `2009-2010`.
    """
    numbers = set()
    for minus, digits, percent in SHOWN_NUMBER.findall(text):
        plain = digits.replace(",", "")
        numbers |= {sign + plain + end for sign in {"", minus} for end in {"", percent.strip()}}
    return numbers


def find_usable_rows(table: Table) -> set[str]:
    """Names of rows that hold numbers only, and that a program can name."""
    return {row[0] for row in table if row and row[0].isprintable() and is_usable_row(row[0], table)}


def is_usable_row(name: str, table: Table) -> bool:
    step = Step("table_max", (name, "none"))
    try:
        split_at_commas(name)  # a bracket without its partner would end the operation elsewhere
        execute_program((step,), table)
        return parse_program(str(step)) == (step,)
    except ProgramError:
        return False
