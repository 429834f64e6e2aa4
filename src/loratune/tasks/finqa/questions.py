"""FinQA's questions about pages of annual reports, and how they are read from its own or a flattened form.

Each is answered by a small program over the page's facts (Chen et al., 2021, "FinQA: A Dataset of Numerical
Reasoning over Financial Data"; MIT).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

from loratune.data.jsonl import describe_type, has_lone_surrogate, read_text_field
from loratune.system.read import parse_json

MAX_RESULT = 1e300  # result of a program


@dataclass(frozen=True)
class Question:
    id: str
    page: str
    text: str
    pre_text: list[str]
    post_text: list[str]
    table: list[list[str]]
    answer: str
    exe_ans: float | str | None  # what the program gives: a number, yes or no
    program: str
    gold: list[str] | None  # ids of the facts that the answer needs; None where nobody said
    found: bool = False  # whether the program is one that was only found to give the result


def parse_question(values: dict[str, Any]) -> Question:
    """From FinQA's own form (a `qa` object) or the flattened one. Raises ValueError that names the field."""
    asked = values.get("qa", values)
    if not isinstance(asked, dict):
        raise ValueError(f"qa must be an object, not {describe_type(asked)}")
    question_id = read_text_field(values, "id")
    table = read_list_field(values, "table")
    if not all(isinstance(row, list) and all(isinstance(cell, str) for cell in row) for row in table):
        raise ValueError("table must be a list of rows, each a list of texts")
    refuse_lone_surrogates("table", chain.from_iterable(table))
    answers = (read_text_field(asked, name, required=False).strip() for name in ("answer", "final_result"))
    program = (
        read_text_field(asked, "program", required=False)
        or read_text_field(asked, "program_solution", required=False)
    ).strip()
    # Of the shipped training data, see tools/programs.py.
    found = read_text_field(asked, "found_program", required=False)
    return Question(
        id=question_id,
        page=question_id.rpartition("-")[0] or question_id,
        text=read_text_field(asked, "question").strip(),
        pre_text=read_sentences(values, "pre_text"),
        post_text=read_sentences(values, "post_text"),
        table=table,
        answer=next(filter(None, answers), ""),
        exe_ans=read_result(asked),
        program=program or found,
        gold=read_gold_facts(asked),
        found=bool(found and not program),
    )


def read_result(asked: dict[str, Any]) -> float | str | None:
    """`exe_ans`, the program's result. Tables made with pandas have NaN where there is none."""
    value = asked.get("exe_ans")
    if isinstance(value, str):
        return read_text_field(asked, "exe_ans", required=False)
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


def read_gold_facts(asked: dict[str, Any]) -> list[str] | None:
    """Ids of the facts that the answer needs. FinQA has an object from id to text; an empty one says as
    little as none.
    """
    gold = parse_if_json(asked.get("gold_inds"))
    if isinstance(gold, dict):
        gold = [
            name for name, text in gold.items() if text is not None
        ]  # Parquet gives each row the ids of all others, too
    if gold is not None and not (isinstance(gold, list) and all(isinstance(name, str) for name in gold)):
        raise ValueError(
            f"gold_inds must be an object or a list of the facts' ids, not {describe_type(gold)}"
        )
    refuse_lone_surrogates("gold_inds", gold or [])
    return gold or None


def read_list_field(values: dict[str, Any], name: str) -> list:
    """A list, also where a flattened copy holds it as JSON text."""
    if name not in values:
        raise ValueError(f"{name} is missing (there are: {', '.join(values)})")
    value = parse_if_json(values[name])
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list, not {describe_type(value)}")
    return value


def parse_if_json(value: Any) -> Any:
    """What a text is as JSON: a flattened copy may hold a list or an object so. The text, if it is none."""
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
