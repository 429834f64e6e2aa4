"""The grammar of FinQA's programs about one page, for constrained decoding (see `generation.constrained`).

A program has its linear form, `subtract(5829, 5735), divide(#0, 5735)`. Its numbers occur in the prompt or
are constants, `#n` is the result of an earlier step, and operations on the table take rows of numbers. So
every such text can be parsed and executed, unless its arithmetic fails, as in a division by zero, and every
prefix of one can be completed.
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

# All constants in the training programs of the shipped data; dev and test have no others.
CONSTANTS = tuple(
    f"const_{value}" for value in (*range(1, 11), 100, 1000, 100_000, 1_000_000, 1_000_000_000, "m1")
)
MAX_STEPS = 8  # gold programs have at most 5; without a limit an answer might never end
SHOWN_NUMBER = re.compile(r"(-?)((?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(\s?%)?")


class GrammarState(NamedTuple):
    """The state of a parser within a program."""

    expected: str = "operation"  # or first, second (operand), row, comma (after a step)
    prefix: bytes = b""  # what was read of the expected word
    operation: bytes = b""  # of the unfinished step
    results: tuple[bool, ...] = ()  # of each finished step: whether it is a number, which `#n` may name


class ProgramGrammar:
    """The language of all programs with these numbers, as programs write them, and these rows of a table.

    A program is a sequence of words, each from a set that depends on the words before it. A word includes
    what must follow it, so that none is the prefix of another and a text is parsed in only one way. No set is
    empty, because there are always constants, so every prefix can be completed; only after the last allowed
    step there is no next word.
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

    def after(self, state: GrammarState, piece: bytes) -> GrammarState | None:
        """Return the state after `piece`; None if no program continues like that."""
        state, rest = state._replace(prefix=b""), state.prefix + piece
        while rest:
            words = self.list_expected_words(state, rest)
            nearest = bisect_right(words, rest)
            if nearest and rest.startswith(words[nearest - 1]):
                word = words[nearest - 1]
                state, rest = advance_state(state, word), rest[len(word) :]
            elif nearest < len(words) and words[nearest].startswith(rest):
                return state._replace(prefix=rest)
            else:
                return None
        return state

    def is_complete(self, state: GrammarState) -> bool:
        return state.expected == "comma" and not state.prefix

    def list_expected_words(self, state: GrammarState, rest: bytes) -> Sequence[bytes]:
        """List the words that may come next, sorted; operands are references if `rest` starts with #."""
        if state.expected == "comma" and len(state.results) == MAX_STEPS:
            return []
        if state.expected in ("first", "second") and rest.startswith(b"#"):
            end = ", " if state.expected == "first" else ")"
            return encode_sorted(f"#{step}{end}" for step, is_number in enumerate(state.results) if is_number)
        return self.words[state.expected]


def advance_state(state: GrammarState, word: bytes) -> GrammarState:
    """Return the state after a complete word."""
    match state.expected:
        case "operation":
            operation = word[:-1]
            return state._replace(
                expected="row" if operation.decode() in TABLE_OPERATIONS else "first", operation=operation
            )
        case "first":
            return state._replace(expected="second")
        case "comma":
            return state._replace(expected="operation")
        case _:  # the step is finished
            return GrammarState("comma", results=(*state.results, state.operation != b"greater"))


def encode_sorted(words: Iterable[str]) -> list[bytes]:
    return sorted(word.encode() for word in words)


def build_program_grammar(prompt: str, table: Table | None) -> ProgramGrammar:
    """Build the grammar of programs with the numbers of a prompt and the rows of the page's table."""
    return ProgramGrammar(extract_numbers(prompt), find_usable_rows(table or []))


def extract_numbers(text: str) -> set[str]:
    """Extract a text's numbers as programs write them: without commas, with a shown % and without it.

    A number counts with its minus sign and without, which may be a hyphen, as in `2009-2010`.
    """
    numbers = set()
    for minus, digits, percent in SHOWN_NUMBER.findall(text):
        plain = digits.replace(",", "")
        numbers |= {sign + plain + end for sign in {"", minus} for end in {"", percent.strip()}}
    return numbers


def find_usable_rows(table: Table) -> set[str]:
    """Find the names of rows that hold only numbers and that a program can name."""
    return {row[0] for row in table if row and row[0].isprintable() and is_usable_row(row[0], table)}


def is_usable_row(name: str, table: Table) -> bool:
    step = Step("table_max", (name, "none"))
    try:
        split_at_commas(name)  # an unmatched bracket in the name would end the operation elsewhere
        execute_program((step,), table)
        return parse_program(str(step)) == (step,)
    except ProgramError:
        return False
