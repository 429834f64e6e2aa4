"""The user's files: the same rows give the same records in every format and form."""

import csv
import json
import os
import re
from datetime import date
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loratune.data.conversation import list_learned
from loratune.data.example import Record
from loratune.data.jsonl import format_records
from loratune.data.sources.files import read_file_records
from loratune.data.sources.values import is_placeholder
from loratune.errors import UserError

ROOT = Path(__file__).parents[2]
KINDS = (".jsonl", ".json", ".csv", ".parquet")
# A carriage return alone ends a line in CSV; pure controls are no text.
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30).map(str.strip)
# What says that there is no input is tested in tests/commands/test_prepare_own_data.py.
inputs = texts.filter(lambda text: not is_placeholder(text))
rows = st.lists(st.tuples(texts.filter(bool), inputs, texts.filter(bool)), min_size=1, max_size=4)
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


def read_contents(path, columns=None) -> list[tuple[str, str, str]]:
    return [
        (record.instruction, record.input, record.output)
        for record in read_file_records(path, columns or {}, "mine")
    ]


def read_refusal(path, columns=None) -> str:
    with pytest.raises(UserError) as caught:
        read_file_records(path, columns or {}, "mine")
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", FORMS.values(), ids=FORMS)
@settings(deadline=None)  # the first example of a kind imports its reader
@given(rows=rows)
def test_every_file_format_gives_the_same_records(tmp_path_factory, kind, names, rows):
    path = tmp_path_factory.mktemp("files") / f"mine{kind}"
    write(path, [dict(zip(names, row, strict=True)) for row in rows])
    assert read_contents(path) == rows


def test_list_inside_an_object_is_read(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"version": "1.0", "data": [{"prompt": "a", "completion": "b"}]}))
    assert read_contents(path) == [("a", "", "b")]


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet"])
def test_chat_is_kept_up_to_its_last_answer(tmp_path, kind):
    path = tmp_path / f"mine{kind}"
    turns = [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "1 + 1?"),
        ("assistant", "2"),
        ("user", "Thanks"),
    ]
    messages = [{"role": role, "content": content} for role, content in turns]
    write(path, [{"messages": messages}])
    (record,) = read_file_records(path, {}, "mine")
    assert record.messages == messages[:-1]
    assert read_contents(path) == [("1 + 1?", "System: Be brief.\nUser: Hi\nAssistant: Hello", "2")]


@pytest.mark.parametrize("page", ["README.md", "docs/data.md"])
def test_documented_conversations_are_kept_whole(tmp_path, page):
    blocks = re.findall(r"(?s)```json\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"))
    rows = [json.loads(block) for block in blocks if block.startswith('{"messages"')]
    assert rows and any(one["role"] == "tool" for row in rows for one in row["messages"])
    for row in rows:
        write(tmp_path / "mine.jsonl", [row])
        (record,) = read_file_records(tmp_path / "mine.jsonl", {}, "mine")
        assert (record.messages, record.tools) == (row["messages"], row.get("tools", []))
        answers = [one for one in row["messages"] if one["role"] == "assistant"]
        assert len(list_learned(record.messages)) == len(answers) > 1


CHAT = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]


@pytest.mark.parametrize("columns", [{}, {"group": "group"}, {"id": "id"}])
def test_messages_keep_their_group_and_id(tmp_path, columns):
    path = tmp_path / "mine.jsonl"
    write(path, [{"messages": CHAT, "group": 3, "id": "first"}, {"messages": CHAT}])
    first, second = read_file_records(path, columns, "mine")
    assert (first.group, first.id) == ("3", "first")
    assert second.group == "" and len(second.id) == 16


def test_chat_accepts_only_the_columns_that_belong_to_it(tmp_path):
    path = tmp_path / "mine.jsonl"
    write(path, [{"messages": CHAT, "thread": "t", "number": 7}])
    (record,) = read_file_records(path, {"group": "thread", "id": "number"}, "mine")
    assert (record.instruction, record.group, record.id) == ("1 + 1?", "t", "7")
    message = read_refusal(path, {"input": "thread", "group": "talk"})
    assert (
        "columns=input: unknown for messages; the left side is one of messages, system, tools, group, id"
        in message
    )
    assert "no column 'talk' for `columns` group=talk" in message


def test_requested_columns_override_messages(tmp_path):
    path = tmp_path / "mine.jsonl"
    write(path, [{"messages": CHAT, "frage": "a", "antwort": "b"}])
    assert read_contents(path, {"instruction": "frage", "output": "antwort"}) == [("a", "", "b")]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages must be a list of role and content"),
        ("Hi", "messages must be a list of role and content, not text"),
        ([{"role": "user", "content": "Hi"}], "messages: no message is an assistant's"),
        (
            [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Hi"}],
            "messages: message 1: the conversation begins with the role 'assistant'; a user's message must "
            "come first; add it, or remove this message",
        ),
        (
            [{"role": "user", "content": "Hi"}, {"role": "assistant"}],
            "messages: message 2: content is missing",
        ),
        (
            [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " "}],
            "messages: message 2: content is blank",
        ),
        (
            [{"role": "user", "content": ["Hi"]}],
            "messages: message 1: content, part 1: a part of the type text is needed, not text",
        ),
    ],
)
def test_broken_messages_are_reported(tmp_path, messages, message):
    path = tmp_path / "mine.jsonl"
    write(path, [{"messages": messages}])
    assert f"{path}, line 1: " in read_refusal(path) and message in read_refusal(path)


def test_columns_are_mapped(tmp_path):
    path = tmp_path / "mine.csv"
    write(path, [{"frage": "a", "antwort": "b", "seite": "p1", "input": "i"}])
    (record,) = read_file_records(
        path, {"instruction": "frage", "output": "antwort", "group": "seite"}, "mine"
    )
    assert (record.instruction, record.input, record.output, record.group) == ("a", "i", "b", "p1")


def test_numbers_are_valid_ids_and_groups(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [{"id": 7, "group": 1.5}, {"id": None, "group": None}, {"id": 0, "group": 0}, {"id": " "}]
    write(path, [{"prompt": "a", "completion": "b"} | row for row in rows])
    first, second, third, fourth = read_file_records(path, {}, "mine")
    assert (first.id, first.group, third.id, third.group) == ("7", "1.5", "0", "0")
    assert (second.id, second.group) == (fourth.id, fourth.group) and len(second.id) == 16


@pytest.mark.parametrize(
    "form", [{"prompt": "a", "completion": "b"}, {"messages": CHAT}], ids=["columns", "messages"]
)
@pytest.mark.parametrize("name", ["id", "group"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["a"], "must be text or a number, not a list"),
        ({"a": 1}, "must be text or a number, not an object"),
        (True, "must be text or a number, not true or false"),
        (float("nan"), "must be text or a number, not nan"),
        ("\ud800", "holds a broken character"),
    ],
)
def test_invalid_id_or_group_is_reported(tmp_path, form, name, value, message):
    path = tmp_path / "mine.jsonl"
    write(path, [form, form | {name: value}])
    assert read_refusal(path).startswith(f"{path}, line 2: {name} {message}")


metas = st.dictionaries(
    texts, st.none() | st.booleans() | st.integers() | texts | st.lists(texts, max_size=2), max_size=3
)


@given(rows=rows, meta=metas)
def test_written_records_are_read_back_except_their_source(tmp_path_factory, rows, meta):
    path = tmp_path_factory.mktemp("files") / "mine.jsonl"
    records = [
        Record(*row, id=f"id {number}", source="mine", group="g", meta=meta)
        for number, row in enumerate(rows)
    ]
    path.write_text(
        format_records(records).replace('"source": "mine"', '"source": "other"'), encoding="utf-8"
    )
    assert read_file_records(path, {}, "mine") == records


@pytest.mark.parametrize("meta", ["text", 3, ["a"], None, {"broken": "\ud800"}, {"number": float("nan")}])
def test_meta_column_that_is_not_an_object_is_ignored(tmp_path, meta):
    path = tmp_path / "mine.jsonl"
    write(path, [{"prompt": "a", "completion": "b", "meta": meta}])
    assert read_file_records(path, {}, "mine")[0].meta == {}


def test_meta_column_that_json_cannot_express_is_ignored(tmp_path):
    path = tmp_path / "mine.parquet"
    write(path, [{"prompt": "a", "completion": "b", "meta": {"day": date(2024, 2, 29)}}])
    assert read_file_records(path, {}, "mine")[0].meta == {}


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_columns_are_refused(tmp_path, kind):
    path = tmp_path / f"mine{kind}"
    write(path, [{"text": "a", "label": "b"}])
    message = read_refusal(path)
    assert (
        "no column for instruction" in message
        and "no column for output" in message
        and "`columns` output=NAME" in message
    )
    assert "its columns are text, label" in message
    message = read_refusal(path, {"instruction": "question", "answer": "label"})
    assert (
        "no column 'question' for `columns` instruction=question" in message
        and "columns=answer: unknown" in message
    )


def test_empty_cell_is_reported_by_its_column_name(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text('prompt,completion\na,b\n"two\nlines",\n')
    assert read_refusal(path).splitlines()[0] == f"{path}, line 4: completion is blank"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "mine.jsonl",
            b'{"prompt": "a", "completion": "b"}\n{"prompt": \n',
            "mine.jsonl, line 2: not valid JSON",
        ),
        ("mine.jsonl", b'["a"]\n', "line 1: a JSON object is needed, not a list"),
        ("mine.json", b'[{"prompt": "a"},\n oops]', "mine.json, line 2: not valid JSON"),
        ("mine.json", b'{"a": [], "b": []}', "a list of objects is needed, or an object with one list in it"),
        ("mine.json", b"3", "a list of objects is needed"),
        (
            "mine.json",
            b'[{"prompt": "a", "completion": "b"}, "x"]',
            "row 2: a JSON object is needed, not text",
        ),
        ("mine.json", b'[{"prompt": ' + b"[" * 100_000, "mine.json: not valid JSON: nested too deeply"),
        (
            "mine.jsonl",
            b'{"prompt": ' + b"[" * 100_000,
            "mine.jsonl, line 1: not valid JSON: nested too deeply",
        ),
        ("mine.json", b"[\n\xff]", "mine.json, line 2: not UTF-8 text"),
        ("mine.json", b"", "the file is empty"),
        ("mine.json", b"\xef\xbb\xbf \n", "the file is empty"),
        ("mine.json", b"[]", "the file is empty"),
        ("mine.jsonl", b"\n", "the file is empty"),
        ("mine.csv", b"", "the file is empty"),
        ("mine.csv", b"prompt,completion\n", "the file is empty"),
        (
            "mine.csv",
            b"prompt,completion\na,b,c\n",
            "line 2: the row has more or fewer cells than the 2 columns",
        ),
        ("mine.csv", b"prompt,completion\na\n", "line 2: the row has more or fewer cells than the 2 columns"),
        (
            "mine.csv",
            b"prompt,completion\n\na,b\n\nc\n",
            "line 5: the row has more or fewer cells than the 2 columns",
        ),
        (
            "mine.csv",
            b'prompt,completion\na,b\n\nc,"d\ne,f\n',
            "line 4: not valid CSV: a quote that opens in this row is not closed",
        ),
        (
            "mine.csv",
            b'"prompt,completion\na,b\n',
            "line 1: not valid CSV: a quote that opens in this row is not closed",
        ),
        ("mine.csv", b'prompt,completion\n"a\nb",c\na,"b"c\n', "line 4: not valid CSV"),
        ("mine.csv", b"prompt,completion\n\xff,b\n", "line 2: not UTF-8 text"),
        ("mine.parquet", b"PAR1 but not really", "cannot be read as Parquet"),
        ("mine.txt", b"a", "unknown kind of file; use .parquet, .jsonl, .json, .csv"),
    ],
)
def test_broken_file_is_refused_with_its_line(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    assert message in read_refusal(tmp_path / file)


def test_very_long_cell_is_read(tmp_path):
    path = tmp_path / "mine.csv"
    long = "a " * 200_000 + "a"
    write(path, [{"prompt": long, "completion": "b"}])
    assert read_contents(path) == [(long, "", "b")]


@pytest.mark.parametrize("kind", KINDS)
def test_unreadable_file_is_a_user_error(tmp_path, kind):
    path = tmp_path / f"mine{kind}"
    assert read_refusal(path) == f"{path}: there is no such file"
    path.mkdir()
    assert read_refusal(path) == f"{path}: this is a folder; a file is needed"
    assert "the name is too long" in read_refusal(tmp_path / f"{'a' * 300}{kind}")
    assert "part of this path is a file" in read_refusal(
        write_valid_file(tmp_path / f"file{kind}") / f"mine{kind}"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("kind", KINDS)
def test_missing_permission_is_a_user_error(tmp_path, kind):
    path = write_valid_file(tmp_path / "folder" / f"mine{kind}")
    for closed in (path, path.parent):
        closed.chmod(0)
        message = read_refusal(path)
        closed.chmod(0o700)
        assert message == f"{path}: permission denied; choose a file or folder that you may use"


@pytest.mark.parametrize("kind", KINDS)
def test_permission_denied_is_a_user_error(tmp_path, kind, monkeypatch):
    """As above, but also where root runs the tests."""
    path = write_valid_file(tmp_path / f"mine{kind}")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    assert read_refusal(path) == f"{path}: permission denied; choose a file or folder that you may use"


def write_valid_file(path):
    path.parent.mkdir(exist_ok=True)
    write(path, [{"prompt": "a", "completion": "b"}])
    return path
