"""Tables, JSON and Parquet as other programs write them are read, or refused with a remedy."""

import csv
import io
import json
import shlex
import string
import subprocess
import sys
from datetime import date, datetime, timedelta
from decimal import Decimal

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from loratune.data.bad_rows import BadRows
from loratune.data.sources.readers import read_rows
from loratune.errors import UserError

patient = settings(deadline=None)  # files are written for each example
HEADER = ["question", "answer"]
DELIMITERS = {",": ".csv", ";": ".csv", "\t": ".tsv", "|": ".csv"}


def read_values(path) -> list[dict]:
    return [row.values for row in read_rows(path)]


def write_file(folder, name: str, content: str | bytes):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read_refusal(path) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        read_rows(path)
    return caught.value.problems


ONE = [{"question": "Why, oh why?", "answer": "So; it | is."}]

AS_WRITTEN = {
    "semicolons": ("mine.csv", 'question;answer\nWhy, oh why?;"So; it | is."\n'),
    "semicolons with a byte order mark and CRLF": (
        "mine.csv",
        '\ufeffquestion;answer\r\n"Why, oh why?";"So; it | is."\r\n',
    ),
    "tabs in .tsv": ("mine.tsv", "question\tanswer\nWhy, oh why?\tSo; it | is.\n"),
    "tabs in .csv": ("mine.csv", "question\tanswer\nWhy, oh why?\tSo; it | is.\n"),
    "commas in .tsv": ("mine.tsv", 'question,answer\n"Why, oh why?",So; it | is.\n'),
    "pipes": ("mine.csv", 'question|answer\nWhy, oh why?|"So; it | is."\n'),
    "Excel's first line": ("mine.csv", 'sep=;\r\nquestion;answer\r\nWhy, oh why?;"So; it | is."\r\n'),
    "Excel's first line in quotes": (
        "mine.csv",
        '\ufeff"sep=|"\nquestion|answer\nWhy, oh why?|"So; it | is."\n',
    ),
    "UTF-16": ("mine.csv", "question\tanswer\r\nWhy, oh why?\tSo; it | is.\r\n".encode("utf-16")),
    "UTF-16, big endian": (
        "mine.csv",
        b"\xfe\xff" + 'question,answer\n"Why, oh why?",So; it | is.\n'.encode("utf-16-be"),
    ),
    "line ends of old Macs": ("mine.csv", 'question,answer\r"Why, oh why?",So; it | is.\r'),
    "spaces in the header": ("mine.csv", ' question ,answer\xa0\n"Why, oh why?",So; it | is.\n'),
    "a comma at each row's end": ("mine.csv", 'question,answer\n"Why, oh why?",So; it | is.,\n'),
    "commas at each line's end": ("mine.csv", 'question,answer,,\n"Why, oh why?",So; it | is.,,\n'),
    "commas at the header's end": ("mine.csv", 'question,answer,\n"Why, oh why?",So; it | is.\n'),
    "empty rows around": ("mine.csv", ',,\nquestion,answer,\n, ,\n"Why, oh why?",So; it | is.,\n,,\n,,\n'),
    "a column without a name": ("mine.csv", ',question,answer\n0,"Why, oh why?",So; it | is.\n'),
    "spaces before quotes": ("mine.csv", 'question, answer\n"Why, oh why?", "So; it | is."\n'),
    "JSON Lines in .json": ("mine.json", json.dumps(ONE[0]) + "\n\n"),
    "a list on one line in .jsonl": ("mine.jsonl", json.dumps(ONE)),
    "a list in .jsonl": ("mine.jsonl", json.dumps(ONE, indent=2)),
    "an object over lines in .jsonl": ("mine.jsonl", json.dumps(ONE[0], indent=2)),
    "an object over lines in .json": ("mine.json", json.dumps(ONE[0], indent=2)),
    "JSON in UTF-16": ("mine.json", json.dumps(ONE).encode("utf-16")),
}


@pytest.mark.parametrize("name", AS_WRITTEN)
def test_row_is_the_same_in_every_format(tmp_path, name):
    assert read_values(write_file(tmp_path, *AS_WRITTEN[name])) == ONE


def test_excel_csv_examples_are_read(tmp_path):
    """European texts with commas, decimal commas, quotes and line breaks; cells are quoted where needed."""
    rows = [
        {"question": f'Was kostet {n},50 €?\nUnd "mehr"?', "answer": f"{n},5; nicht mehr"} for n in range(9)
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, HEADER, delimiter=";")
    writer.writeheader()
    writer.writerows(rows)
    assert read_values(write_file(tmp_path, "mine.csv", "\ufeff" + text.getvalue())) == rows


# Letters that mean something in one of the dialects are frequent.
cells = st.text(
    st.sampled_from(",;\t|\"'\n =\\a1") | st.characters(exclude_categories=["Cs", "Cc"]), max_size=12
)
# An empty row is none, and a table has a header.
tables = st.lists(st.tuples(cells, cells), min_size=1, max_size=5).filter(
    lambda rows: all(any(cell.strip() for cell in row) for row in rows)
)
names = st.lists(st.text(string.ascii_letters, min_size=1, max_size=6), min_size=2, max_size=2, unique=True)
STYLES = {
    "quoted where needed": {"quoting": csv.QUOTE_MINIMAL},
    "all quoted": {"quoting": csv.QUOTE_ALL},
    "texts quoted": {"quoting": csv.QUOTE_NONNUMERIC},
}


def as_table(rows, **style) -> str:
    text = io.StringIO()
    csv.writer(text, **style).writerows(rows)
    return text.getvalue()


@pytest.mark.parametrize("delimiter", DELIMITERS)
@pytest.mark.parametrize("style", STYLES)
@patient
@given(header=names, rows=tables)
def test_written_tables_are_read_back(tmp_path_factory, delimiter, style, header, rows):
    path = tmp_path_factory.mktemp("tables") / f"mine{DELIMITERS[delimiter]}"
    text = as_table([header, *rows], delimiter=delimiter, **STYLES[style])
    path.write_text(text, encoding="utf-8-sig", newline="")
    assert read_values(path) == [dict(zip(header, row, strict=True)) for row in rows]


@patient
@given(
    header=st.lists(cells.map(str.strip).filter(bool), min_size=2, max_size=3, unique=True),
    rows=tables,
    data=st.data(),
)
def test_ordinary_csv_is_read_as_by_the_csv_module(tmp_path_factory, header, rows, data):
    rows = [
        [*row, *data.draw(st.lists(cells, min_size=len(header) - 2, max_size=len(header) - 2))]
        for row in rows
    ]
    path = tmp_path_factory.mktemp("tables") / "mine.csv"
    path.write_text(as_table([header, *rows]), encoding="utf-8", newline="")
    assert read_values(path) == [dict(zip(header, row, strict=True)) for row in rows]


@pytest.mark.parametrize("delimiter", DELIMITERS)
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONE])
@patient
@given(rows=tables)
def test_backslash_escaped_quotes_are_read(tmp_path_factory, delimiter, quoting, rows):
    path = tmp_path_factory.mktemp("tables") / f"mine{DELIMITERS[delimiter]}"
    # A row that shows that backslashes escape: without one they are what they are.
    rows = [('say "hi" to', f'me{delimiter} "you" and'), *rows]
    style = {"delimiter": delimiter, "doublequote": False, "escapechar": "\\", "quoting": quoting}
    path.write_text(as_table([HEADER, *rows], **style), encoding="utf-8", newline="")
    assert read_values(path) == [dict(zip(HEADER, row, strict=True)) for row in rows]


@patient
@given(rows=tables)
def test_other_backslashes_stay_beside_escaped_quotes(tmp_path_factory, rows):
    r"""Some writers escape the quotes alone, and not the backslash of \n or \alpha."""
    rows = [[cell.replace('"', "").replace("\\", r"\n") for cell in row] for row in rows]
    rows = [row for row in rows if "".join(row).strip()]  # one without text is left out
    assume(not any("\\" in cell[-1:] for row in rows for cell in row))
    rows = [[r'say "hi" \alpha', 'and "you"'], *rows]
    lines = [",".join('"' + cell.replace('"', r"\"") + '"' for cell in row) for row in [HEADER, *rows]]
    path = tmp_path_factory.mktemp("tables") / "mine.csv"
    path.write_text("\n".join(lines), encoding="utf-8", newline="")
    assert read_values(path) == [dict(zip(HEADER, row, strict=True)) for row in rows]


def test_backslashes_of_an_ordinary_file_are_kept(tmp_path):
    rows = [("C:\\", 'a "b" \\alpha'), (r"\"", r"\\x"), ("\\", '\\",\\"')]
    path = write_file(tmp_path, "mine.csv", as_table([HEADER, *rows], quoting=csv.QUOTE_ALL))
    assert read_values(path) == [dict(zip(HEADER, row, strict=True)) for row in rows]


def test_unquoted_tsv_is_read(tmp_path):
    """A quote is a letter there: it neither swallows the lines up to the next one nor goes away."""
    path = write_file(
        tmp_path,
        "mine.tsv",
        'question\tanswer\n"Yes" or no?\tYes\n5" or 7" pipe?\t"Five\nWhat else?\t"None\n',
    )
    assert [tuple(row.values()) for row in read_values(path)] == [
        ('"Yes" or no?', "Yes"),
        ('5" or 7" pipe?', '"Five'),
        ("What else?", '"None'),
    ]


def test_broken_quoting_is_not_read_as_unquoted_tsv(tmp_path):
    """Its quotes would become part of the texts."""
    path = write_file(tmp_path, "mine.tsv", 'question\tanswer\n"a\tb"\t"c"\n"d" e\tf\n')
    assert "not valid CSV" in read_refusal(path)[0]


def test_unparsable_row_is_refused_even_with_skip_bad(tmp_path):
    """Nobody knows where it ends: what follows would be lost with it, uncounted."""
    path = write_file(tmp_path, "mine.csv", 'question,answer\na,"b\nc,d\ne,f\n')
    with pytest.raises(UserError) as caught:
        read_rows(path, BadRows(skip=True))
    assert str(caught.value).startswith(
        f"{path}, line 2: not valid CSV: a quote that opens in this row is not closed"
    )


def test_remedy_for_ragged_rows_is_shown_once(tmp_path):
    path = write_file(tmp_path, "mine.csv", "question;answer\n" + "a;b\nc;d;e\nf\n" * 3)
    *problems, remedy = read_refusal(path)
    assert problems == [
        f"{path}, line {line}: the row has more or fewer cells than the 2 columns of the header"
        for line in (3, 4, 6, 7, 9, 10)
    ]
    assert remedy.startswith(f"{path}: ") and "double quotes" in remedy and "';'" in remedy


def test_ragged_rows_are_skipped_with_skip_bad(tmp_path):
    bad = BadRows(skip=True)
    rows = read_rows(write_file(tmp_path, "mine.csv", "question,answer\na,b\nc,d,e\nf,g\n"), bad)
    assert [row.values["question"] for row in rows] == ["a", "f"] and len(bad.problems) == 1


def test_empty_cells_beside_the_table_are_ignored(tmp_path):
    path = write_file(tmp_path, "mine.csv", "question,answer,,\na,b,,a note\nc,d,,\n")
    assert read_values(path) == [{"question": "a", "answer": "b"}, {"question": "c", "answer": "d"}]


@pytest.mark.parametrize("kind", [".json", ".jsonl"])
def test_json_is_read_by_content_not_by_suffix(tmp_path, kind):
    rows = [{"question": f"{number}?\u2028", "answer": ["a", {"b": None}]} for number in range(3)]
    forms = {
        "lines": "".join(json.dumps(row) + "\n" for row in rows),
        "list": json.dumps(rows),
        "pretty list": json.dumps(rows, indent=2),
        "pretty objects": "\n".join(json.dumps(row, indent=2) for row in rows),
        "objects in a row": " ".join(map(json.dumps, rows)),
        "old Macs": "".join(json.dumps(row) + "\r" for row in rows),
    }
    for form, text in forms.items():
        assert read_values(write_file(tmp_path, f"mine{kind}", "\ufeff" + text)) == rows, form


def test_row_location_is_its_first_line(tmp_path):
    path = write_file(
        tmp_path, "mine.jsonl", json.dumps({"a": 1}, indent=1) + "\n\n" + json.dumps({"a": 2}, indent=1)
    )
    assert [row.where for row in read_rows(path)] == [f"{path}, line 1", f"{path}, line 5"]
    path.write_text(json.dumps({"a": 1}, indent=1) + "\n3\n")
    assert read_refusal(path) == (f"{path}, line 4: a JSON object is needed, not a number",)


@pytest.mark.parametrize("kind", [".json", ".jsonl"])
def test_every_broken_json_line_is_reported_for_any_suffix(tmp_path, kind):
    path = write_file(tmp_path, f"mine{kind}", '{"a": 1}\n{"a": \n{"a": 3}\n{"a" 4}\n')
    assert [problem.partition(" not")[0] for problem in read_refusal(path)] == [
        f"{path}, line 2:",
        f"{path}, line 4:",
    ]
    bad = BadRows(skip=True)
    assert [row.values for row in read_rows(path, bad)] == [{"a": 1}, {"a": 3}] and len(bad.problems) == 2


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("mine.json", '[\n {"a": 1},\n {"a": 2},\n]', 4),
        ("mine.json", '[\n {"a": 1,},\n {"a": 2}\n]', 2),
        ("mine.jsonl", '[{"a": 1},\n{"a": 2},\n]', 3),
        ("mine.json", '{"a": 1},\n{"a": 2},\n', 1),
        ("mine.jsonl", '{"a": [1,]}', 1),
    ],
)
def test_extra_comma_in_json_is_reported_with_a_remedy(tmp_path, name, content, line):
    path = write_file(tmp_path, name, content)
    message = "\n".join(read_refusal(path))
    assert (
        message.startswith(f"{path}, line {line}: not valid JSON: a comma too many")
        and message.count("take it out") == 1
    )


def test_remedy_for_trailing_commas_is_shown_once(tmp_path):
    path = write_file(tmp_path, "mine.jsonl", '{"a": 1},\n' * 30 + '{"a": 2}\n')
    message = "\n".join(read_refusal(path))
    assert (
        message.count("a comma too many") == 20
        and message.count("take it out") == 1
        and "... and 10 more" in message
    )


def test_broken_multi_line_list_is_reported_once(tmp_path):
    path = write_file(tmp_path, "mine.jsonl", json.dumps([{"a": "b"}] * 9, indent=1).replace('"b"', "b", 1))
    assert read_refusal(path) == (f"{path}, line 3: not valid JSON: Expecting value",)


def test_parquet_columns_of_any_type_are_read(tmp_path):
    """What is no text stays what it is, or is left out where Python has no word for it; texts kept as bytes
    are texts.
    """
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    columns = {
        "prompt": pyarrow.array(["a", None]),
        "bytes": pyarrow.array(["é".encode(), b"b"], pyarrow.binary()),
        "image": pyarrow.array([b"\xff", None], pyarrow.large_binary()),
        "messages": pyarrow.array([turns, []]),
        "price": pyarrow.array([Decimal("1.50"), None]),
        "day": pyarrow.array([date(2024, 2, 29), None]),
        "far": pyarrow.array([10**9, 0], pyarrow.date32()),
        "moment": pyarrow.array([1, 2], pyarrow.timestamp("ns")),
        "length": pyarrow.array([timedelta(1), None]),
        "kind": pyarrow.array(["x", "y"]).dictionary_encode(),
        "tags": pyarrow.array([[("a", 1)], []], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
        "then": pyarrow.array([datetime(2024, 1, 1), None]),
    }
    path = tmp_path / "mine.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    first, second = read_values(path)
    assert first["prompt"] == "a" and second["prompt"] is None
    assert (first["bytes"], first["image"], second["bytes"]) == ("é", b"\xff", "b")
    assert first["messages"] == turns and second["messages"] == []
    assert (first["price"], first["day"], first["kind"]) == (Decimal("1.50"), date(2024, 2, 29), "x")
    assert first["length"] == timedelta(1)


def test_invalid_parquet_text_is_reported_by_column(tmp_path):
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0"), pyarrow.py_buffer(b"\xff")]
    )
    path = tmp_path / "mine.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"], "completion": broken}), path)
    (message,) = read_refusal(path)
    assert "completion" in message and "UTF-8" in message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine.xlsx", "save it as CSV"),
        ("mine.XLS", "save it as CSV"),
        ("mine.ods", "save it as CSV"),
        ("mine.txt", "rename it to .tsv"),
        ("mine.md", "instruction"),
        ("mine.docx", "instruction"),
        ("mine.ndjson", "rename it to .jsonl"),
        ("mine.jsonl.gz", "gunzip"),
        ("mine.jsonl.zst", "zstd"),
        ("mine.jsonl.xz", "xz"),
        ("mine.zip", "unzip"),
        ("mine.arrow", "python -c"),
        ("mine.feather", "python -c"),
        ("mine", "use .parquet, .jsonl, .json, .csv, .tsv"),
        ("mine.sqlite", "use .parquet, .jsonl, .json, .csv, .tsv"),
    ],
)
def test_unknown_file_type_is_refused_with_a_remedy(tmp_path, name, message):
    path = write_file(tmp_path, name, b"a")
    (problem,) = read_refusal(path)
    assert problem.startswith(f"{path}: ") and message in problem


@pytest.mark.parametrize(("kind", "pack"), [(".gz", "gzip"), (".xz", "xz"), (".bz2", "bzip2")])
def test_remedy_for_compressed_files_works(tmp_path, kind, pack):
    path = write_file(tmp_path, "my rows.jsonl", json.dumps(ONE[0]))
    subprocess.run([pack, str(path)], check=True)
    (problem,) = read_refusal(tmp_path / f"my rows.jsonl{kind}")
    subprocess.run(shlex.split(problem.partition("in it: ")[2]), check=True)
    assert read_values(path) == ONE


@pytest.mark.parametrize("form", ["stream", "file"])
@pytest.mark.parametrize("name", ["mine.arrow", "it's mine.feather"])
def test_remedy_for_arrow_files_works(tmp_path, monkeypatch, form, name):
    monkeypatch.chdir(tmp_path)
    table = pyarrow.Table.from_pylist(ONE)
    new = pyarrow.ipc.new_stream if form == "stream" else pyarrow.ipc.new_file
    with new(name, table.schema) as writer:
        writer.write_table(table)
    (problem,) = read_refusal(tmp_path / name)
    command = shlex.split(problem.partition("of it: ")[2])
    subprocess.run([sys.executable, *command[1:]], check=True)
    assert read_values((tmp_path / name).with_suffix(".parquet")) == ONE
