"""Whatever a file holds: a valid result, or a UserError that says where; never another exception, and never a
hang.

The fuzzers run with a few examples in the normal suite and with thousands in the slow one.
"""

import csv
import io
import json
import os
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loratune.api.prompts import read_prompts
from loratune.commands.ask import read_question
from loratune.config.base import read_toml
from loratune.config.train import TrainConfig
from loratune.data.bad_rows import MAX_LISTED
from loratune.data.example import Record, compute_content_id
from loratune.data.jsonl import format_records, read_records
from loratune.data.sources.files import read_file_records
from loratune.data.sources.readers import DATA_SUFFIXES, read_rows
from loratune.data.template import load_template
from loratune.errors import UserError
from loratune.evaluation.forgetting import load_prose
from loratune.models.adapter import read_adapter_metadata
from loratune.models.peft_config import read_adapter_config
from loratune.report.schema import read_evaluation
from loratune.system.read import read_json
from loratune.tasks.finqa.records import FinqaOptions
from loratune.tasks.finqa.source import FILES, load_finqa
from support.deadline import enforce_deadline

FEW, MANY = 60, 1000

# Of every kind that has broken a reader somewhere.
TEXTS = [
    "",
    " ",
    "\u3000\xa0\t",
    "plain",
    "e\u0301 \xe9",  # the same letter decomposed and composed
    "\U0001d4b3🜚👩\u200d🚀",
    "\u200b\ufeff\u2060",
    "\u202eright to left\u202c שלום",
    "one\u2028two\u2029three\x85four\x0cfive",
    "\x00",
    "\x1b[31m",
    "\ud800",
    "\udfff\ud800",
    "cr\rlf\r\n",
    '"quoted", \'and\', "not',
    "{instruction} {input}",
    "### Response:\n",
    "<|end|>",
    "12",
    "NaN",
    "[]",
    "[[" * 50,
    "a" * 5000,
]
texts = st.sampled_from(TEXTS) | st.text(max_size=12)
numbers = (
    st.sampled_from([0, -1, 10**400, 2**63, 1e308, float("nan"), float("inf"), -0.0, True, False, None])
    | st.integers()
)
values = st.recursive(
    texts | numbers,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
NAMES = [
    "instruction",
    "input",
    "output",
    "id",
    "source",
    "group",
    "meta",
    "prompt",
    "completion",
    "messages",
    "role",
    "content",
]
usual = st.builds(
    lambda instruction, output, others: {"instruction": instruction, "output": output, **others},
    texts,
    texts,
    st.dictionaries(st.sampled_from(NAMES) | texts, values, max_size=3),
)
turn = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": texts})
turns = st.lists(turn)
rows = (
    usual
    | st.dictionaries(st.sampled_from(NAMES) | texts, values, max_size=4)
    | st.builds(lambda said: {"messages": said}, turns)
)


def read_or_refuse(read, path: Path):
    """What `read` gives, or the problems that it names; each of them names the file."""
    with enforce_deadline():
        try:
            return read(path)
        except UserError as error:
            assert error.problems and all(problem.strip() for problem in error.problems)
            assert all(
                str(path) in problem or problem.startswith(("... and ", "columns="))
                for problem in error.problems
            ), error.problems
            return error


def damage(content: bytes, random: random.Random) -> bytes:
    """With some bytes changed, cut, doubled or put in."""
    for _ in range(random.randint(-3, 3)):
        at, to = sorted(random.randint(0, len(content)) for _ in range(2))
        content = random.choice(
            [
                content[:at] + content[to:],
                content[:to] + content[at:],
                content[:at]
                + random.choice(
                    [b"\x00", b"\xff", b"\r", b"\n", b'"', b"{", b"[", b"\xef\xbb\xbf", b"\\ud800"]
                )
                + content[at:],
                content[:at],
            ]
        )
    return content


def encode(content: str, random: random.Random) -> bytes:
    raw = content.encode("utf-8", "surrogatepass")
    kind = random.randint(0, 9)
    if kind == 0:
        return content.encode("utf-16", "surrogatepass")
    return b"\xef\xbb\xbf" + raw if kind == 1 else raw.replace(b"\n", b"\r\n") if kind == 2 else raw


def as_jsonl(rows, random) -> bytes:
    return encode("".join(json.dumps(row, ensure_ascii=random.random() < 0.5) + "\n" for row in rows), random)


def as_json(rows, random) -> bytes:
    return encode(
        json.dumps(rows if random.random() < 0.8 else {"data": rows}, ensure_ascii=random.random() < 0.5),
        random,
    )


def as_csv(rows, random, delimiter=",") -> bytes:
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=random.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    writer.writerow(names)
    writer.writerows([[row.get(name, "") for name in names] for row in rows])
    return encode(text.getvalue(), random)


def as_tsv(rows, random) -> bytes:
    return as_csv(rows, random, delimiter=random.choice("\t\t;|"))


def as_parquet(rows, random) -> bytes:
    buffer = io.BytesIO()
    try:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    except Exception:  # rows that Arrow itself cannot hold
        return b"PAR1"
    return buffer.getvalue()


WRITERS = {".jsonl": as_jsonl, ".json": as_json, ".csv": as_csv, ".tsv": as_tsv, ".parquet": as_parquet}
randoms = st.randoms(use_true_random=False)


def check_rows(folder: Path, kind: str, rows: list, random) -> None:
    path = folder / f"mine{kind}"
    path.write_bytes(damage(WRITERS[kind](rows, random), random))
    columns = random.choice([{}, {}, {"instruction": "prompt", "output": "a"}])
    found = read_or_refuse(lambda path: read_file_records(path, columns, "mine"), path)
    if not isinstance(found, UserError):
        check_records(folder, found)
    if kind == ".jsonl":
        found = read_or_refuse(read_records, path)
        if not isinstance(found, UserError):
            check_records(folder, found)


def check_records(folder: Path, records: list[Record]) -> None:
    """All that is accepted can be written and read again, and stays the same."""
    assert records and all(record.instruction.strip() and record.output.strip() for record in records)
    written = folder / "written.jsonl"
    written.write_text(format_records(records), encoding="utf-8", newline="\n")
    assert read_records(written) == records
    for line in written.read_bytes().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def check_value(folder: Path, read, name: str, value, random) -> None:
    path = folder / name
    path.write_bytes(damage(encode(json.dumps(value, ensure_ascii=random.random() < 0.5), random), random))
    read_or_refuse(read, path)


def run(check, strategies, count):
    settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )(given(st.tuples(*strategies))(lambda drawn: check(*drawn)))()


counts = pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])


@counts
@pytest.mark.parametrize("kind", DATA_SUFFIXES)
def test_mutated_row_files_are_read_or_refused(tmp_path, kind, count):
    run(
        lambda rows, random: check_rows(tmp_path, kind, rows, random),
        [st.lists(rows, max_size=4), randoms],
        count,
    )


GOOD = {
    "id": "A/1-2",
    "pre_text": ["one two three"],
    "post_text": [],
    "table": [["", "2010"], ["a b c", "1"]],
}
ASKED = {
    "question": "why?",
    "answer": "3",
    "program": "add(1, 2)",
    "exe_ans": 3.0,
    "gold_inds": {"text_0": "one"},
}
# A page with one or two fields that hold anything, so that most others are read to the end.
changes = st.dictionaries(
    st.sampled_from([*GOOD, *ASKED, "found_program", "final_result", "qa"]),
    values | st.lists(texts | values, max_size=3) | st.lists(st.lists(texts, max_size=3), max_size=3),
    max_size=2,
)
pages = changes.map(lambda change: GOOD | ASKED | change) | changes.map(
    lambda change: GOOD | {"qa": ASKED | change}
)

JSON_READERS = {
    "prompts.json": (read_prompts, st.lists(texts | values, max_size=3) | values),
    "page.json": (lambda path: read_question("why?", path), pages | values),
    "any.json": (read_json, values),
    "evaluation.json": (read_evaluation, values),
    "adapter_config.json": (
        lambda path: read_adapter_config(path.parent),
        st.fixed_dictionaries(
            {"peft_type": st.just("LORA")},
            optional={"lora_alpha": values, "alpha_pattern": values, "bias": values, "r": values},
        )
        | values,
    ),
    "loratune.json": (
        lambda path: read_adapter_metadata(path.parent),
        st.dictionaries(
            st.sampled_from(["base", "prepared", "template", "settings"]),
            values | st.dictionaries(st.sampled_from(["name", "fingerprint", "fact_tokens"]), values),
        )
        | values,
    ),
}


@counts
@pytest.mark.parametrize("name", JSON_READERS)
def test_mutated_json_files_are_read_or_refused(tmp_path, name, count):
    read, content = JSON_READERS[name]
    folder_named = name in ("adapter_config.json", "loratune.json")

    def reading(path):
        try:
            return read(path)
        except UserError as error:
            # An adapter's own words name its folder and the file in it.
            assert not folder_named or all(
                str(path.parent) in problem and name in problem for problem in error.problems
            )
            raise (
                UserError(*(f"{path}: {problem}" for problem in error.problems)) if folder_named else error
            ) from error

    run(lambda value, random: check_value(tmp_path, reading, name, value, random), [content, randoms], count)


@counts
def test_mutated_finqa_files_are_read_or_refused(tmp_path, count):
    options = FinqaOptions("program", 64, lambda texts: [len(text.encode()) for text in texts])

    def check(rows, random):
        for file in FILES.values():
            good = [
                GOOD | ASKED | {"id": f"{file}-{number}", "question": f"{file} {number}?"}
                for number in range(2)
            ]
            (tmp_path / file).write_text(json.dumps(good))
        (tmp_path / "dev.json").write_bytes(damage(as_json(rows, random), random))
        with enforce_deadline():
            try:
                loaded = load_finqa(tmp_path, options)
            except UserError as error:
                assert all(
                    str(tmp_path) in problem or problem.startswith("... and ") for problem in error.problems
                )
                return
        check_records(tmp_path, [record for one in loaded for record in one.records])

    run(check, [st.lists(pages, max_size=3), randoms], count)


SNIPPETS = [
    'with_input = "{instruction} {input}"\n',
    'without_input = "{instruction}"\n',
    "with_input = '''\n{instruction}\n{input}'''\n",
    'name = "\\u0000"\n',
    "rank = 0xffffffffffffffffffffffff\n",
    "rank = 99999999999999999999999\n",
    "alpha = nan\n",
    "alpha = 1e999\n",
    'budget = "1h30m"\n',
    'budget = "' + "1" * 300 + 'x"\n',
    "steps = 1\nepochs = 2\n",
    "max-tokens = 64\nmax_tokens = 65\n",
    'max_tokens = "' + "9" * 5000 + '"\nmicro_tokens = "' + "9" * 5001 + '"\n',
    "targets = [" + "[" * 2000 + "\n",
    "a.b.c = 1\n",
    "out = 1979-05-27\n",
    'out = "a\\u0000b"\n',
    "[data]\n",
    "rank = 1\nrank = 2\n",
    "\ufeff",
    "\r",
    "x = '\x00'\n",
]
tomls = st.lists(
    st.sampled_from(SNIPPETS) | st.text(st.sampled_from("a=[]{}'\"\\\n#.1 "), max_size=10), max_size=4
).map("".join)


@counts
def test_mutated_settings_and_templates_are_read_or_refused(tmp_path, count):
    path = tmp_path / "mine.toml"

    def check(text, random):
        path.write_bytes(damage(encode(text, random), random))
        read_or_refuse(lambda path: TrainConfig.validate_all(read_toml(path), where=str(path)), path)
        template = read_or_refuse(lambda path: load_template(str(path)), path)
        if not isinstance(template, UserError):
            assert template.render("one", "two").count("one") == 1 and "{i" not in template.render("one")

    run(check, [tomls, randoms], count)


@counts
def test_mutated_plain_text_is_read_or_refused(tmp_path, count):
    path = tmp_path / "mine.txt"

    def check(text, random):
        path.write_bytes(damage(encode(text, random), random))
        read_or_refuse(load_prose, path)

    run(check, [texts, randoms], count)


GOOD_LINE = json.dumps({"instruction": "a", "output": "b"})
BAD_LINES = [
    "{",
    "[1]",
    "null",
    '"text"',
    "NaN",
    '{"instruction": "a"}',
    '{"instruction": "", "output": "b"}',
    '{"instruction": "a", "output": " \\u3000\\n"}',
    '{"instruction": 1, "output": "b"}',
    '{"instruction": "a", "output": 2}',
    '{"instruction": "a", "output": "\\ud800"}',
    '{"instruction": "a", "instruction": "b", "output": "c"}',
    '{"instruction": "a", "output": "b", "meta": {"a": {"b": 1, "b": 2}}}',
    '{"instruction": "a", "output": "b", "group": true}',
    "[" * 100_000,
    '{"instruction": "a", "output": "b", "id": ' + "9" * 5000 + "}",
]


@given(st.lists(st.sampled_from([GOOD_LINE, "", *BAD_LINES]), max_size=60))
@settings(max_examples=FEW, deadline=None)
def test_every_line_is_read_or_reported_and_counted(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("\n".join([GOOD_LINE, *lines]), encoding="utf-8")
    bad = [number for number, line in enumerate(lines, 2) if line in BAD_LINES]
    found = read_or_refuse(read_records, path)
    if not bad:
        assert len(found) == 1 + lines.count(GOOD_LINE)
        return
    named = [problem for problem in found.problems if not problem.startswith("...")]
    assert [int(problem.removeprefix(f"{path}, line ").partition(":")[0]) for problem in named] == bad[
        :MAX_LISTED
    ]
    more = len(bad) - MAX_LISTED
    assert found.problems[len(named) :] == ((f"... and {more:,} more like these",) if more > 0 else ())


@pytest.mark.parametrize("kind", [*DATA_SUFFIXES, ".toml", ".txt"])
@pytest.mark.parametrize("place", ["pipe", "device", "folder", "loop", "missing", "null"])
def test_special_files_are_refused_immediately(tmp_path, kind, place):
    path = tmp_path / f"mine{kind}"
    if place == "pipe":
        os.mkfifo(path)
    elif place == "device":
        path.symlink_to("/dev/zero")
    elif place == "folder":
        path.mkdir()
    elif place == "loop":
        path.symlink_to(path)
    elif place == "null":
        path = tmp_path / f"mi\0ne{kind}"
    readers = {".toml": [read_toml, lambda path: load_template(str(path))], ".txt": [load_prose]}
    for read in readers.get(kind, [read_rows, read_json, read_records, read_prompts]):
        found = read_or_refuse(read, path)
        assert isinstance(found, UserError) and len(found.problems) == 1


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv"])
def test_line_of_ten_megabytes_is_read(tmp_path, kind):
    path = tmp_path / f"mine{kind}"
    long = "word " * 2_000_000 + "end"
    path.write_bytes(WRITERS[kind]([{"instruction": long, "output": long}], random.Random(3)))
    (record,) = read_or_refuse(lambda path: read_file_records(path, {}, "mine"), path)
    assert record.instruction == record.output == long
    path.write_bytes(path.read_bytes().replace(b"word end", b'"'))
    assert isinstance(
        read_or_refuse(lambda path: read_file_records(path, {}, "mine"), path), UserError
    ) or kind in (
        ".csv",
        ".tsv",
    )


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b" \r\n\t\n"])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv"])
def test_empty_file_is_reported_as_empty(tmp_path, kind, content):
    path = tmp_path / f"mine{kind}"
    path.write_bytes(content)
    found = read_or_refuse(read_rows, path)
    assert "the file is empty" in str(found) or kind in (".csv", ".tsv")
    assert isinstance(read_or_refuse(lambda path: read_file_records(path, {}, "mine"), path), UserError)


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv"])
def test_utf_16_with_byte_order_mark_is_read(tmp_path, kind):
    path = tmp_path / f"mine{kind}"
    content = WRITERS[kind]([{"instruction": "é", "output": "b"}], random.Random(3)).decode()
    path.write_bytes(content.encode("utf-16"))
    (row,) = read_or_refuse(read_rows, path)
    assert row.values == {"instruction": "é", "output": "b"}
    path.write_bytes(content.encode("utf-16") + b"a")
    assert str(read_or_refuse(read_rows, path)).endswith("not UTF-16 text; save the file as UTF-8")
    path.write_bytes(content.encode("cp1252"))
    assert str(read_or_refuse(read_rows, path)).endswith(
        "not UTF-8 text; save the file as UTF-8"
    ) or kind in (
        ".json",
        ".jsonl",
    )


def test_duplicate_column_names_are_refused(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("prompt,completion,prompt,,\na,b,c,,\n")
    assert (
        str(read_or_refuse(read_rows, path))
        == f"{path}, line 1: the header names 'prompt' twice; rename one column"
    )
    path.write_text("prompt,completion,,\na,b,,\n")
    assert len(read_or_refuse(read_rows, path)) == 1  # a spreadsheet's empty columns are no harm


def test_line_separator_inside_a_text_ends_no_line(tmp_path):
    text = "one\u2028two\u2029three\x85four\x0cfive"
    for kind, write in WRITERS.items():
        path = tmp_path / f"mine{kind}"
        path.write_bytes(write([{"instruction": text, "output": "b"}], random.Random(3)))
        (record,) = read_file_records(path, {}, "mine")
        assert record.instruction == text


def test_composed_and_decomposed_letters_are_kept(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(
        as_jsonl([{"instruction": text, "output": "b"} for text in ("e\u0301", "\xe9")], random.Random(3))
    )
    one, other = read_file_records(path, {}, "mine")
    assert (one.instruction, other.instruction) == ("e\u0301", "\xe9") and one.id != other.id
    assert one.id == compute_content_id("e\u0301", "", "b")


def test_duplicate_name_among_many_is_found_quickly(tmp_path):
    path = tmp_path / "mine.jsonl"
    names = [*map(str, range(200_000)), "7"]
    path.write_text("{" + ", ".join(f'"{name}": 1' for name in names) + "}")
    assert (
        str(read_or_refuse(read_rows, path))
        == f"{path}, line 1: '7' stands twice in one object; only one of them can be meant"
    )
