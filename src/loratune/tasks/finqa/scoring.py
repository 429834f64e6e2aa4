"""Score answers as programs: validity, execution accuracy and program accuracy."""

from loratune.data.example import Record
from loratune.tasks.base import TaskScore
from loratune.tasks.finqa.equivalence import is_same_program
from loratune.tasks.finqa.program import (
    Program,
    ProgramError,
    Table,
    Value,
    execute_program,
    execute_text,
    is_same_result,
    parse_program,
)


def score_program(text: str, record: Record) -> TaskScore:
    """Score an answer to a row that asks for a program.

    If the gold program is unknown, no program counts as right, as in the paper's own evaluation.
    """
    program = parse_or_none(text)
    result = execute_or_none(program, get_table(record))
    gold = parse_or_none(record.output) if record.has_target else None
    scores = {
        "execution_accuracy": float(is_same_result(result, get_gold_result(record))),
        "program_accuracy": float(
            gold is not None and program is not None and is_same_program(gold, program)
        ),
        "valid_programs": float(result is not None),
    }
    return TaskScore(scores, result)


def parse_or_none(text: str) -> Program | None:
    try:
        return parse_program(text)
    except ProgramError:
        return None


def execute_or_none(program: Program | None, table: Table | None) -> Value | None:
    try:
        return execute_program(program, table) if program else None
    except ProgramError:
        return None


def asks_for_program(record: Record) -> bool:
    """Tell whether the row's target is its program or, if none is known, whether a result is recorded."""
    program = record.meta.get("program")
    if not record.has_target:
        return not program and is_result(record.meta.get("exe_ans"))
    return bool(program) and record.output == program


def get_gold_result(record: Record) -> Value | None:
    """Return FinQA's recorded result; where it has none, the result of its program."""
    recorded = record.meta.get("exe_ans")
    return recorded if is_result(recorded) else execute_text(record.meta["program"], get_table(record))


def is_result(value: object) -> bool:
    return isinstance(value, int | float | str)


def get_table(record: Record) -> Table | None:
    """Return the page's table; None if the user's own record has something else under that name."""
    table = record.meta.get("table")
    rows = table if isinstance(table, list) and all(isinstance(row, list) for row in table) else []
    return table if rows and all(isinstance(cell, str) for row in rows for cell in row) else None
