"""Scores of one answer to a held-out row. A score that does not apply to the row is absent."""

from dataclasses import dataclass

from loratune.data.records import Record
from loratune.evaluation.finqa import ProgramError, Table, Value, parse, result_of, same_program, same_result
from loratune.evaluation.text import rep_4, rouge_l
from loratune.generation.decode import Answer


@dataclass(frozen=True)
class Scored:
    """An answer, its text, and what was made of it."""

    answer: Answer
    text: str
    scores: dict[str, float]
    result: Value | None  # of the program that the answer is, where a program was wanted


def scored(answer: Answer, tokenizer, record: Record) -> Scored:
    text = tokenizer.decode(answer.ids).strip()
    result = result_of(text, table_of(record)) if wants_program(record) else None
    # Each score is a number whose mean over rows is the measure of that name in `evaluation.json`.
    scores = {
        "rouge_l": rouge_l(text, record.output),
        "eos_rate": float(answer.ended == "eos"),
        "cap_rate": float(answer.ended == "length"),
        "mean_tokens": float(len(answer.ids)),
        "rep_4": rep_4(answer.ids),
    }
    if wants_program(record):
        scores |= program_scores(text, result, record)
    return Scored(answer, text, scores, result)


def program_scores(text: str, result: Value | None, record: Record) -> dict[str, float]:
    """Is the answer a program, has it the right result, is it the right program?"""
    return {
        "execution_accuracy": float(same_result(result, gold_result(record))),
        "program_accuracy": float(is_program(text, record.output)),
        "valid_programs": float(result is not None),
    }


def wants_program(record: Record) -> bool:
    wanted = record.meta.get("program")
    return bool(wanted) and record.output == wanted


def gold_result(record: Record) -> Value | None:
    """FinQA's recorded result; where it has none, that of its program."""
    recorded = record.meta.get("exe_ans")
    return recorded if isinstance(recorded, int | float | str) else result_of(record.meta["program"], table_of(record))


def table_of(record: Record) -> Table | None:
    """The page's table; none where a record of the user's own has something else under that name."""
    table = record.meta.get("table")
    rows = table if isinstance(table, list) and all(isinstance(row, list) for row in table) else []
    return table if rows and all(isinstance(cell, str) for row in rows for cell in row) else None


def is_program(text: str, wanted: str) -> bool:
    try:
        return same_program(parse(wanted), parse(text))
    except ProgramError:
        return False
