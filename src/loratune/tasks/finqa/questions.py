"""FinQA's questions about pages of annual reports, read from its own or a flattened form.

Each is answered by a small program over the page's facts (Chen et al., 2021, "FinQA: A Dataset of Numerical
Reasoning over Financial Data"; MIT).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

from loratune.data.json_values import describe_type, has_lone_surrogate, read_text_field
from loratune.system.read import parse_json

MAX_RESULT = 1e300  # of a program


@dataclass(frozen=True)
class Question:
    """A question with its page and, as far as they are known, its answer, program and gold facts."""

    id: str
    page: str
    text: str
    pre_text: list[str]
    post_text: list[str]
    table: list[list[str]]
    answer: str
    exe_ans: float | str | None  # the program's recorded result: a number, yes or no
    program: str
    gold: list[str] | None  # ids of the facts that the answer needs; None if unknown
    program_found: bool = False  # whether the program is not recorded, but was found from the result


def parse_question(values: dict[str, Any]) -> Question:
    """Parse FinQA's own form (with a `qa` object) or the flattened one.

    Raises:
        ValueError: a field is unusable; the message names it.
    """
    qa = values.get("qa", values)
    if not isinstance(qa, dict):
        raise ValueError(f"qa must be an object, not {describe_type(qa)}")
    question_id = read_text_field(values, "id")
    table = read_list_field(values, "table")
    if not all(isinstance(row, list) and all(isinstance(cell, str) for cell in row) for row in table):
        raise ValueError("table must be a list of rows, each a list of texts")
    refuse_lone_surrogates("table", chain.from_iterable(table))
    answers = (read_text_field(qa, name, required=False).strip() for name in ("answer", "final_result"))
    program = (
        read_text_field(qa, "program", required=False)
        or read_text_field(qa, "program_solution", required=False)
    ).strip()
    # Only the shipped training data has this field, see tools/programs.py.
    found_program = read_text_field(qa, "found_program", required=False)
    return Question(
        id=question_id,
        page=question_id.rpartition("-")[0] or question_id,
        text=read_text_field(qa, "question").strip(),
        pre_text=read_sentences(values, "pre_text"),
        post_text=read_sentences(values, "post_text"),
        table=table,
        answer=next(filter(None, answers), ""),
        exe_ans=read_result(qa),
        program=program or found_program,
        gold=read_gold_facts(qa),
        program_found=bool(found_program and not program),
    )


def read_result(qa: dict[str, Any]) -> float | str | None:
    """Read `exe_ans`, the program's result; pandas writes NaN if there is none."""
    value = qa.get("exe_ans")
    if isinstance(value, str):
        return read_text_field(qa, "exe_ans", required=False)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | None)
        or (value is not None and abs(value) > MAX_RESULT)
    ):
        raise ValueError(
            "exe_ans must be a number or text, not "
            f"{value if isinstance(value, float) else describe_type(value)}"
        )
    return None if value != value else value


def read_gold_facts(qa: dict[str, Any]) -> list[str] | None:
    """Read the ids of the facts that the answer needs, the keys of FinQA's object; None if empty."""
    gold = parse_if_json(qa.get("gold_inds"))
    if isinstance(gold, dict):
        # Parquet gives each row the ids of all others, too, with null as text.
        gold = [name for name, text in gold.items() if text is not None]
    if gold is not None and not (isinstance(gold, list) and all(isinstance(name, str) for name in gold)):
        raise ValueError(
            f"gold_inds must be an object or a list of the facts' ids, not {describe_type(gold)}"
        )
    refuse_lone_surrogates("gold_inds", gold or [])
    return gold or None


def read_list_field(values: dict[str, Any], name: str) -> list:
    """Read a list, which a flattened copy may hold as JSON text."""
    if name not in values:
        raise ValueError(f"{name} is missing (there are: {', '.join(values)})")
    value = parse_if_json(values[name])
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list, not {describe_type(value)}")
    return value


def parse_if_json(value: Any) -> Any:
    """Parse a text that is JSON, as lists and objects in a flattened copy are; return others unchanged."""
    try:
        return parse_json(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def read_sentences(values: dict[str, Any], name: str) -> list[str]:
    sentences = read_list_field(values, name)
    if not all(isinstance(sentence, str) for sentence in sentences):
        raise ValueError(f"{name} must be a list of sentences")
    refuse_lone_surrogates(name, sentences)
    return sentences


def refuse_lone_surrogates(name: str, texts: Iterable[str]) -> None:
    if any(map(has_lone_surrogate, texts)):
        raise ValueError(f"{name} holds a broken character (a lone surrogate)")
