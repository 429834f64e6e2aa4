"""JSON Lines files of records: written, read back, and refused with the line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratune.data.bad_rows import MAX_LISTED
from loratune.data.example import Record, compute_content_id
from loratune.data.jsonl import format_records, read_records, write_records
from loratune.errors import UserError

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
filled = text.filter(str.strip)
meta = st.dictionaries(text, st.none() | st.booleans() | st.integers() | text, max_size=3)


def read_problems(path) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        read_records(path)
    return caught.value.problems


@given(
    st.lists(
        st.builds(Record, filled, text, filled, id=filled, source=filled, group=text, meta=meta),
        min_size=1,
        max_size=5,
    )
)
def test_written_records_are_read_back(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("records") / "rows.jsonl"
    write_records(path, records)
    assert read_records(path) == records


def test_only_instruction_and_output_are_required(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('\n{"instruction": "Add.", "output": "3"}\n\n')
    assert read_records(path) == [
        Record("Add.", "", "3", id=compute_content_id("Add.", "", "3"), source="mine")
    ]


def test_content_id_depends_on_the_fields():
    assert (
        len(
            {
                compute_content_id("a", "b", "c"),
                compute_content_id("ab", "", "c"),
                compute_content_id("a", "", "bc"),
            }
        )
        == 3
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ('"text"', "a JSON object is needed, not text"),
        ('["a"]', "a JSON object is needed, not a list"),
        ("null", "a JSON object is needed, not null"),
        ("[" * 100_000, "not valid JSON"),
        ('{"instruction": "a"}', "output is missing"),
        ('{"output": "a"}', "instruction is missing"),
        ('{"instruction": "a", "output": " \\n"}', "output is blank"),
        ('{"instruction": "", "output": "b"}', "instruction is blank"),
        ('{"instruction": "a", "output": 3}', "output must be text, not a number"),
        ('{"instruction": "a", "output": null}', "output must be text, not null"),
        ('{"instruction": "a", "input": ["x"], "output": "b"}', "input must be text, not a list"),
        ('{"instruction": "a", "output": "b", "id": 7}', "id must be text, not a number"),
        ('{"instruction": "a", "output": "b", "meta": "x"}', "meta must be an object"),
        ('{"instruction": "a", "output": "\\ud800"}', "output holds a broken character"),
        (
            '{"instruction": "a", "output": "b", "meta": {"category": "\\ud800"}}',
            "meta holds what JSON cannot express",
        ),
        (
            '{"instruction": "a", "output": "b", "meta": {"exe_ans": NaN}}',
            "meta holds what JSON cannot express",
        ),
        ('{"instruction": "a", "output": "b", "output": "c"}', "'output' stands twice in one object"),
    ],
)
def test_bad_line_is_reported(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "a", "output": "b"}\n' + line + "\n")
    (problem,) = read_problems(path)
    assert problem.startswith(f"{path}, line 2: ") and message in problem


def test_bad_lines_are_reported_up_to_a_limit(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("x\n" * (MAX_LISTED + 5))
    found = read_problems(path)
    assert [problem.split(":")[0] for problem in found[:-1]] == [
        f"{path}, line {number}" for number in range(1, MAX_LISTED + 1)
    ]
    assert found[-1] == "... and 5 more like these"


def test_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"instruction": "a", "output": "b"}\n')
    assert read_records(path)[0].instruction == "a"


def test_unicode_line_separators_do_not_end_a_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"instruction": "a\u2028b\x85", "output": "b"}\r\n'.encode())
    assert read_records(path)[0].instruction == "a\u2028b\x85"


def test_line_that_is_not_utf8_is_reported(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"instruction": "a", "output": "b"}\n{"instruction": "\xe4", "output": "b"}\n')
    assert read_problems(path) == (f"{path}, line 2: not UTF-8 text; save the file as UTF-8",)


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_an_empty_file_is_refused(tmp_path, content):
    path = tmp_path / "rows.jsonl"
    path.write_text(content, encoding="utf-8")
    assert "the file is empty" in read_problems(path)[0]


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "there is no such file" in read_problems(tmp_path / "rows.jsonl")[0]
    assert "this is a folder" in read_problems(tmp_path)[0]


def test_record_is_written_as_one_line_of_json():
    (line,) = format_records([Record("a\nb", "", "ü", id="1", source="s")]).splitlines()
    assert json.loads(line) == {
        "instruction": "a\nb",
        "input": "",
        "output": "ü",
        "id": "1",
        "source": "s",
        "group": "",
        "meta": {},
    }
