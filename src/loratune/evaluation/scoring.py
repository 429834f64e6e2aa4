"""Scores of one answer to a held-out row. A score that does not apply to the row is absent."""

from dataclasses import dataclass

from loratune.data.example import Record
from loratune.evaluation.text_metrics import rep_4, rouge_l
from loratune.generation.request import Answer
from loratune.tasks.finqa.program import (
    Program,
    ProgramError,
    Table,
    Value,
    execute_program,
    execute_text,
    is_same_program,
    is_same_result,
    parse_program,
)


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer, its text, and what was made of it."""

    answer: Answer
    text: str
    scores: dict[str, float]
    result: Value | None  # of the program that the answer is, where a program was wanted


def score_answer(answer: Answer, tokenizer, record: Record) -> ScoredAnswer:
    text = tokenizer.decode(answer.ids).strip()
    program = parse_or_none(text) if wants_program(record) else None
    result = execute_or_none(program, get_table(record))
    # Each score is a number whose mean over rows is the measure of that name in `evaluation.json`.
    scores = {
        **({"rouge_l": rouge_l(text, record.output)} if record.has_target else {}),
        "eos_rate": float(answer.ended == "eos"),
        "cap_rate": float(answer.ended == "length"),
        "mean_tokens": float(len(answer.ids)),
        "rep_4": rep_4(answer.ids),
    }
    if wants_program(record):
        scores |= score_program(program, result, record)
    return ScoredAnswer(answer, text, scores, result)


def score_program(program: Program | None, result: Value | None, record: Record) -> dict[str, float]:
    """Is the answer a program, has it the right result, is it the right program?

    Where the right program is unknown no program is it, as in the paper's own evaluation.
    """
    gold = parse_or_none(record.output) if record.has_target else None
    return {
        "execution_accuracy": float(is_same_result(result, get_gold_result(record))),
        "program_accuracy": float(
            gold is not None and program is not None and is_same_program(gold, program)
        ),
        "valid_programs": float(result is not None),
    }


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


def wants_program(record: Record) -> bool:
    """Whether a program is the wanted response, or, where that is unknown, the result of one is recorded."""
    program = record.meta.get("program")
    if not record.has_target:
        return not program and is_result(record.meta.get("exe_ans"))
    return bool(program) and record.output == program


def get_gold_result(record: Record) -> Value | None:
    """FinQA's recorded result; where it has none, that of its program."""
    recorded = record.meta.get("exe_ans")
    return recorded if is_result(recorded) else execute_text(record.meta["program"], get_table(record))


def is_result(value: object) -> bool:
    return isinstance(value, int | float | str)


def get_table(record: Record) -> Table | None:
    """The page's table; none where a record of the user's own has something else under that name."""
    table = record.meta.get("table")
    rows = table if isinstance(table, list) and all(isinstance(row, list) for row in table) else []
    return table if rows and all(isinstance(cell, str) for row in rows for cell in row) else None
