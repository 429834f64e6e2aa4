"""The same rows in every kind of file and every form give the same records."""

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratune.data.sources.files import file_records
from loratune.errors import UserError

KINDS = (".jsonl", ".json", ".csv", ".parquet")
# A carriage return alone ends a line in CSV; pure controls are no text.
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30).map(str.strip)
rows = st.lists(st.tuples(texts.filter(bool), texts, texts.filter(bool)), min_size=1, max_size=4)
FORMS = {
    "alpaca": ("instruction", "input", "output"),
    "prompt and completion": ("prompt", "input", "completion"),
    "prompt and response": ("prompt", "context", "response"),
    "question and answer": ("question", "context", "answer"),
}


def write(path, rows: list[dict]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        with open(path, "w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def contents(path, columns=None) -> list[tuple[str, str, str]]:
    return [(record.instruction, record.input, record.output) for record in file_records(path, columns or {}, "mine")]


def refusal(path, columns=None) -> str:
    with pytest.raises(UserError) as caught:
        file_records(path, columns or {}, "mine")
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", FORMS.values(), ids=FORMS)
@given(rows=rows)
def test_every_kind_of_file_in_every_form(tmp_path_factory, kind, names, rows):
    path = tmp_path_factory.mktemp("files") / f"mine{kind}"
    write(path, [dict(zip(names, row, strict=True)) for row in rows])
    assert contents(path) == rows


def test_a_list_inside_of_an_object(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"version": "1.0", "data": [{"prompt": "a", "completion": "b"}]}))
    assert contents(path) == [("a", "", "b")]


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet"])
def test_messages_give_the_last_answered_question(tmp_path, kind):
    path = tmp_path / f"mine{kind}"
    said = [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "1 + 1?"),
        ("assistant", "2"),
        ("user", "Thanks"),
    ]
    write(path, [{"messages": [{"role": role, "content": content} for role, content in said]}])
    assert contents(path) == [("1 + 1?", "System: Be brief.\nUser: Hi\nAssistant: Hello", "2")]


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([], "messages must be a list of role and content"),
        ("Hi", "messages must be a list of role and content, not text"),
        ([{"role": "user", "content": "Hi"}], "no turn of the user that the assistant answers"),
        (
            [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Hi"}],
            "no turn of the user that the assistant answers",
        ),
        ([{"role": "user", "content": "Hi"}, {"role": "assistant"}], "messages, number 2: content is missing"),
        ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " "}], "messages, number 2: content is blank"),
        ([{"role": "user", "content": ["Hi"]}], "messages, number 1: content must be text, not a list"),
    ],
)
def test_broken_messages_are_named(tmp_path, messages, told):
    path = tmp_path / "mine.jsonl"
    write(path, [{"messages": messages}])
    assert f"{path}, line 1: " in refusal(path) and told in refusal(path)


def test_columns_are_mapped(tmp_path):
    path = tmp_path / "mine.csv"
    write(path, [{"frage": "a", "antwort": "b", "seite": "p1", "input": "i"}])
    (record,) = file_records(path, {"instruction": "frage", "output": "antwort", "group": "seite"}, "mine")
    assert (record.instruction, record.input, record.output, record.group) == ("a", "i", "b", "p1")


def test_numbers_serve_as_ids(tmp_path):
    path = tmp_path / "mine.jsonl"
    write(path, [{"id": 7, "prompt": "a", "completion": "b"}, {"id": None, "prompt": "a", "completion": "c"}])
    first, second = file_records(path, {}, "mine")
    assert first.id == "7" and len(second.id) == 16


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_columns_are_refused(tmp_path, kind):
    path = tmp_path / f"mine{kind}"
    write(path, [{"text": "a", "label": "b"}])
    told = refusal(path)
    assert "no column for instruction" in told and "no column for output" in told and "--columns output=NAME" in told
    assert "its columns are text, label" in told
    told = refusal(path, {"instruction": "question", "answer": "label"})
    assert "no column 'question' for --columns instruction=question" in told and "--columns answer: unknown" in told


def test_an_empty_cell_is_named_by_its_own_columns_name(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text('prompt,completion\na,b\n"two\nlines",\n')
    assert refusal(path) == f"{path}, line 4: completion is blank"


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("mine.jsonl", b'{"prompt": "a", "completion": "b"}\n{"prompt": \n', "mine.jsonl, line 2: not valid JSON"),
        ("mine.jsonl", b'["a"]\n', "line 1: a JSON object is needed, not a list"),
        ("mine.json", b'[{"prompt": "a"},\n oops]', "mine.json, line 2: not valid JSON"),
        ("mine.json", b'{"a": [], "b": []}', "a list of objects is needed, or an object with one list in it"),
        ("mine.json", b"3", "a list of objects is needed"),
        ("mine.json", b'[{"prompt": "a", "completion": "b"}, "x"]', "row 2: a JSON object is needed, not text"),
        ("mine.json", b"", "the file is empty"),
        ("mine.json", b"[]", "the file is empty"),
        ("mine.jsonl", b"\n", "the file is empty"),
        ("mine.csv", b"", "the file is empty"),
        ("mine.csv", b"prompt,completion\n", "the file is empty"),
        ("mine.csv", b"prompt,completion\na,b,c\n", "line 2: the row has not as many cells as the 2 columns"),
        ("mine.csv", b"prompt,completion\na\n", "line 2: the row has not as many cells as the 2 columns"),
        ("mine.csv", b'prompt,completion\na,"b\n', "not valid CSV"),
        ("mine.csv", b"prompt,completion\n\xff,b\n", "line 2: not UTF-8 text"),
        ("mine.parquet", b"PAR1 but not really", "cannot be read as Parquet"),
        ("mine.txt", b"a", "unknown kind of file; use .parquet, .jsonl, .json, .csv"),
    ],
)
def test_broken_files_are_refused_with_the_place(tmp_path, file, content, told):
    (tmp_path / file).write_bytes(content)
    assert told in refusal(tmp_path / file)
