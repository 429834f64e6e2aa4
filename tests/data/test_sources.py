"""Dolly and FinQA in the forms of other copies."""

import pytest

from loratune.data.example import Record
from loratune.data.sources.dolly import convert_dolly_rows
from loratune.data.sources.readers import FileRow
from loratune.errors import UserError
from loratune.tasks.finqa.evidence import compute_fact_recall
from loratune.tasks.finqa.questions import parse_question, read_list_field


def dolly(**row) -> list[Record]:
    return convert_dolly_rows([FileRow("dolly.jsonl, line 1", row)])


@pytest.mark.parametrize("row", [{}, {"context": None, "category": None}, {"context": " "}])
def test_dolly_context_and_category_are_optional(row):
    (record,) = dolly(instruction=" Name a fruit. ", response="Fig.", **row)
    assert (record.instruction, record.input, record.output, record.meta) == ("Name a fruit.", "", "Fig.", {})
    (same,) = dolly(instruction="Name a fruit.", response="Fig.", context="", category="open_qa")
    assert same.id == record.id and same.meta == {"category": "open_qa"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"response": "b"}, "instruction is missing (there are: response)"),
        ({"instruction": "a", "response": None}, "response must be text, not null"),
        ({"instruction": " ", "response": "b"}, "instruction is blank"),
        ({"instruction": "a", "response": "b", "context": ["c"]}, "context must be text, not a list"),
    ],
)
def test_dolly_row_without_its_columns_is_reported(row, message):
    with pytest.raises(UserError) as caught:
        dolly(**row)
    assert str(caught.value) == f"dolly.jsonl, line 1: {message}"


def test_deeply_nested_finqa_list_is_refused():
    with pytest.raises(ValueError, match="table must be a list, not text"):
        read_list_field({"table": "[" * 100_000}, "table")


def test_fact_recall_counts_only_finqa_rows():
    finqa = {
        "gold_facts": {"text_1": "a", "text_2": "b"},
        "kept_facts": ["text_2", "text_3"],
        "first_facts": ["text_2"],
    }
    metas = [
        finqa,
        finqa | {"kept_facts": ["text_1", "text_2"]},
        finqa | {"gold_facts": None},
        {"gold_facts": 3},
        {"gold_facts": {"a": 1}},
    ]
    records = [Record("a", "", "b", "1", "s", meta=meta) for meta in metas]
    assert compute_fact_recall(records) == {
        "rows": 2,
        "all_gold_facts": 0.5,
        "gold_facts": 0.75,
        "recall_at_3": 0.5,
    }
    assert compute_fact_recall(records[2:]) is None


FINQA = {
    "id": "A-1",
    "pre_text": [],
    "post_text": [],
    "table": [],
    "question": "why?",
    "program": "add(1, 2)",
}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("exe_ans", [1], "exe_ans must be a number or text, not a list"),
        ("exe_ans", True, "exe_ans must be a number or text, not true or false"),
        ("exe_ans", float("inf"), "exe_ans must be a number or text, not inf"),
        ("exe_ans", "\ud800", "exe_ans holds a broken character"),
        ("gold_inds", "text_1", "gold_inds must be an object or a list of the facts' ids, not text"),
        ("gold_inds", [[1]], "gold_inds must be an object or a list of the facts' ids, not a list"),
        ("gold_inds", ["\ud800"], "gold_inds holds a broken character"),
    ],
)
def test_finqa_result_and_gold_facts_are_validated(field, value, message):
    with pytest.raises(ValueError) as caught:
        parse_question(FINQA | {field: value})
    assert str(caught.value).removesuffix(" (a lone surrogate)") == message


def test_gold_facts_of_flattened_copies_are_read():
    """Parquet gives each row the ids of all other rows, without texts; others have JSON text, or NaN for no
    result.
    """
    forms = [{"text_1": "a"}, {"text_1": "a", "text_2": None}, ["text_1"], '{"text_1": "a"}']
    assert [parse_question(FINQA | {"gold_inds": form}).gold for form in forms] == [["text_1"]] * 4
    assert [
        parse_question(FINQA | {"gold_inds": form}).gold for form in (None, {}, [], {"text_1": None})
    ] == [None] * 4
    assert parse_question(FINQA | {"exe_ans": float("nan")}).exe_ans is None
