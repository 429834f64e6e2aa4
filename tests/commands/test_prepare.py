"""`loratune prepare` through its command line, on small data of one's own."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from loratune.cli.main import main
from loratune.data import snapshot
from loratune.data.example import Record
from loratune.data.jsonl import read_records, record_to_json
from loratune.data.sources.readers import read_rows
from loratune.data.sources.resolve import find_source, find_source_problem
from loratune.tasks.registry import SOURCES
from support.small_models import save_model

FILES = ("prepare_report.json", "test.jsonl", "train.jsonl", "val.jsonl")
FINQA_PARTS = {"train.json": "finqa_train", "dev.json": "finqa_dev", "test.json": "finqa_test"}
FRUITS = [
    "apple",
    "banana",
    "cherry",
    "date",
    "fig",
    "grape",
    "kiwi",
    "lemon",
    "mango",
    "nut",
    "orange",
    "plum",
    "quince",
    "rice",
    "squash",
    "tea",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    save_model(folder)
    return str(folder)


@pytest.fixture(scope="module")
def finqa_folder(tmp_path_factory) -> Path:
    """FinQA's own three files, in their own form, ten questions each."""
    folder = tmp_path_factory.mktemp("finqa")
    for file, name in FINQA_PARTS.items():
        (folder / file).write_text(json.dumps([own_form(row) for row in snapshot.read(name)[:10]]))
    return folder


def own_form(row: dict) -> dict:
    asked = {field: row[field] for field in ("question", "answer", "exe_ans", "program")}
    asked["gold_inds"] = {name: "its text" for name in row["gold_inds"] or []}
    return {field: row[field] for field in ("id", "pre_text", "post_text", "table")} | {"qa": asked}


@pytest.fixture
def fruits(tmp_path) -> Path:
    path = tmp_path / "fruits.jsonl"
    write_rows(
        path, [{"instruction": f"What is a {fruit}?", "output": f"A {fruit} is a fruit."} for fruit in FRUITS]
    )
    return path


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prepare(model: str, out: Path, *options) -> int:
    return main(["prepare", "--model", model, "--out", str(out), "--val-fraction", "0.2", *map(str, options)])


def test_files_of_ones_own_and_finqas_own_folder_together(model, fruits, finqa_folder, tmp_path, capsys):
    assert prepare(model, tmp_path / "out", "--data", fruits, finqa_folder, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "out" / "prepare_report.json").read_text())
    parts = {split: read_records(tmp_path / "out" / f"{split}.jsonl") for split in ("train", "val", "test")}
    assert report["rows"] == {split: len(records) for split, records in parts.items()}
    for source in ("fruits", "finqa"):
        told = report["sources"][source]
        assert told["splits"] == {
            split: sum(record.source == source for record in records) for split, records in parts.items()
        }
        assert (
            told["read"] == sum(told["splits"].values()) + sum(told["left_out"].values()) + told["duplicates"]
        )
    assert sum(len(records) for records in parts.values()) == sum(
        one["rows"] for one in report["sources"].values()
    )
    assert {record.meta["facts"] for record in parts["val"] if record.source == "finqa"} == {"retrieved"}
    assert all(
        record.instruction.endswith("\nAnswer with a program.")
        for record in parts["train"]
        if record.source == "finqa"
    )


def test_finqas_answers_may_be_the_target(model, finqa_folder, tmp_path):
    assert prepare(model, tmp_path / "out", "--data", finqa_folder, "--finqa-target", "answer") == 0
    records = read_records(tmp_path / "out" / "val.jsonl")
    assert all(record.output == (record.meta["answer"] or str(record.meta["exe_ans"])) for record in records)
    assert all(record.instruction.endswith("\nAnswer with the result.") for record in records)


def test_the_same_input_gives_the_same_bytes_and_another_seed_another_split(
    model, fruits, finqa_folder, tmp_path
):
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        assert prepare(model, tmp_path / name, "--data", fruits, finqa_folder, "--seed", seed) == 0
    contents = {
        name: [(tmp_path / name / file).read_bytes() for file in FILES] for name in ("one", "two", "three")
    }
    assert contents["one"] == contents["two"]
    assert contents["one"][2] != contents["three"][2]


def near_copies(record: Record) -> list[dict]:
    """As they come when a user has FinQA's held-out rows in a file of theirs, in another form."""
    question, output = record.meta["question"], f"{record.output} exactly"
    wordy = f"Please tell me, {question.upper()}\nAnswer with the number only."
    copies = [
        {"instruction": record.instruction, "input": record.input, "output": output},
        {"instruction": question, "output": output},
        {
            "instruction": wordy,
            "input": f"The whole page. {json.dumps(record.meta['table'])}",
            "output": output,
        },
        {
            "instruction": "Sum up these facts.",
            "input": f"{record.input} .",
            "output": f"{record.id}: many facts.",
        },
    ]
    return [
        {"id": f"{record.id} copy {number}", "group": record.id, **copy} for number, copy in enumerate(copies)
    ]


@pytest.mark.parametrize("name", ["leak", "finqa"])
def test_held_out_rows_of_finqa_do_not_reach_training_through_another_file(
    model, finqa_folder, tmp_path, name
):
    def parts_of(out, *data) -> dict[str, list[Record]]:
        assert prepare(model, tmp_path / out, "--data", *data) == 0
        return {split: read_records(tmp_path / out / f"{split}.jsonl") for split in ("train", "val", "test")}

    alone = parts_of("alone", finqa_folder)
    leak = tmp_path / f"{name}.jsonl"
    copies = {
        split: [copy for record in alone[split] for copy in near_copies(record)] for split in ("val", "test")
    }
    fresh = [
        {"id": f"copy of {fruit}", "instruction": f"What is a {fruit}?", "output": "A fruit."}
        for fruit in FRUITS
    ]
    # The very same rows, too: these are duplicates.
    write_rows(leak, [*copies["val"], *copies["test"], *fresh, *map(record_to_json, alone["test"])])
    for data in ([leak, finqa_folder], [finqa_folder, leak]):
        parts = parts_of("both", *data)
        ours = {split: [record for record in part if "copy" in record.id] for split, part in parts.items()}
        # FinQA's rows stand as they were, and of the user's only those are left that belong where they are.
        for split, records in alone.items():
            assert [record for record in parts[split] if "copy" not in record.id] == records
            allowed = {row["id"] for row in [*fresh, *copies.get(split, [])]}
            assert {record.id for record in ours[split]} <= allowed
        assert {row["id"] for row in fresh} <= {record.id for part in ours.values() for record in part}
        sources = json.loads((tmp_path / "both" / "prepare_report.json").read_text())["sources"]
        gone = len(copies["val"] + copies["test"] + fresh) - sum(map(len, ours.values()))
        assert gone > 20 and sources[name]["left_out"]["near-duplicate of a held-out row"] == gone
        assert sources[name]["duplicates"] == len(alone["test"])


@pytest.mark.slow
def test_the_shipped_data_gives_the_same_bytes_in_another_process(tmp_path):
    for name in ("one", "two"):
        command = [
            sys.executable,
            "-m",
            "loratune",
            "prepare",
            "--source",
            "snapshot",
            "--model",
            "smollm2-135m",
        ]
        subprocess.run([*command, "--out", str(tmp_path / name)], check=True)
    assert [(tmp_path / "one" / file).read_bytes() for file in FILES] == [
        (tmp_path / "two" / file).read_bytes() for file in FILES
    ]


def test_duplicates_and_shortened_rows_are_counted(model, tmp_path, capsys):
    path = tmp_path / "mine.jsonl"
    rows = [
        {"instruction": f"Describe the {fruit}.", "input": "It grows. " * 50, "output": "Fine."}
        for fruit in FRUITS
    ]
    for number, row in enumerate(rows):
        row["input"] += str(number) * 300  # so that they are not all alike
    write_rows(path, [*rows, {**rows[0], "output": "  FINE. "}])
    assert prepare(model, tmp_path / "out", "--data", path, "--max-tokens", 256, "--json") == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)["sources"]["mine"]
    assert (told["read"], told["duplicates"], told["rows"], told["inputs_cut"], told["dropped"]) == (
        17,
        1,
        16,
        16,
        0,
    )
    assert "warning: mine: 16 inputs cut" in captured.err
    assert told["tokens"]["95 %"] <= 256


def chats(count: int) -> list[dict]:
    system = "You are Mila, the patient caretaker of a town's store of old things. Answer in one sentence."
    asked = [
        f"How is the {fruit} of {number} kept at {number * 7}?"
        for number in range(count // 16 + 1)
        for fruit in FRUITS
    ]
    return [
        {
            "messages": [
                {"role": role, "content": text}
                for role, text in zip(("system", "user", "assistant"), said, strict=True)
            ]
        }
        for said in [(system, question, f"Well, {number}.") for number, question in enumerate(asked[:count])]
    ]


@pytest.mark.parametrize("count", [5, 40, 400])
def test_unlike_chats_with_one_system_message_have_an_ordinary_split(model, tmp_path, capsys, count):
    write_rows(tmp_path / "chats.jsonl", chats(count))
    options = [
        "prepare",
        "--model",
        model,
        "--data",
        str(tmp_path / "chats.jsonl"),
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    assert main(options) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert all(
        max(1, 0.025 * count) <= report["rows"][split] <= max(1, 0.15 * count) for split in ("val", "test")
    )
    assert report["sources"]["chats"]["notes"] == [] and "warning" not in captured.err


def test_a_group_that_is_all_of_the_data_is_refused_and_the_remedy_works(model, tmp_path, capsys):
    rows = [{"instruction": f"What is a {fruit}?", "output": "A fruit.", "group": "all"} for fruit in FRUITS]
    write_rows(tmp_path / "mine.jsonl", rows)
    assert prepare(model, tmp_path / "out", "--data", tmp_path / "mine.jsonl") == 2
    captured = capsys.readouterr()
    assert 'mine: 16 of 16 rows have the group "all"' in captured.out
    assert "nothing is left for val: 16 rows are too few, or of too few groups" in captured.err
    for row in rows:
        del row["group"]
    write_rows(tmp_path / "mine.jsonl", rows)
    assert prepare(model, tmp_path / "out", "--data", tmp_path / "mine.jsonl") == 0


def test_two_rows_are_enough_to_train_and_the_missing_test_is_told(model, tmp_path, capsys):
    write_rows(
        tmp_path / "mine.jsonl",
        [{"instruction": f"What is a {fruit}?", "output": "A fruit."} for fruit in FRUITS[:2]],
    )
    assert prepare(model, tmp_path / "out", "--data", tmp_path / "mine.jsonl") == 0
    assert "warning: no rows for test.jsonl; evaluate needs some: add rows" in capsys.readouterr().out
    options = ["--data", tmp_path / "mine.jsonl", "--out", tmp_path / "out", "--val-fraction", 0]
    assert main(["prepare", "--model", model, *map(str, options)]) == 0
    assert "--val-fraction 0 holds nothing out; choose 0.05" in capsys.readouterr().out


def test_columns_are_mapped(model, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("frage,antwort\n" + "".join(f"Was ist {fruit}?,Obst {fruit}\n" for fruit in FRUITS))
    assert (
        prepare(model, tmp_path / "out", "--data", path, "--columns", "instruction=frage", "output=antwort")
        == 0
    )
    assert "Was ist" in (tmp_path / "out" / "train.jsonl").read_text()


GOOD = '{"instruction": "What is this?", "output": "That."}\n'


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("mine.jsonl", None, "mine.jsonl: there is no such file"),
        ("mine.jsonl", GOOD + "{broken\n", "mine.jsonl, line 2: not valid JSON"),
        ("mine.jsonl", GOOD + '{"instruction": "a"}\n', "mine.jsonl, line 2: output is missing"),
        ("mine.jsonl", GOOD + '{"instruction": "a", "output": ""}\n', "mine.jsonl, line 2: output is blank"),
        ("mine.jsonl", '{"instruction": "a"}\n', "mine.jsonl: no column for output"),
        ("mine.jsonl", "", "mine.jsonl: the file is empty"),
        ("mine.csv", "text,label\na,b\n", "its columns are text, label"),
        (
            "mine.jsonl",
            GOOD,
            "nothing is left for val: 1 row is too few, or of too few groups, for training and validation; "
            "add rows",
        ),
        (
            "mine.pdf",
            "a",
            "mine.pdf: unknown kind of file; use .parquet, .jsonl, .json, .csv, .tsv; a text does not say",
        ),
        ("mine.txt", "a", "--data mine.txt: unknown kind of file"),
        ("mine.xlsx", "a", "save it as CSV"),
        ("mine", None, "--data mine: neither dolly nor finqa, nor a file"),
        ("mine.json", '{"a": ' + "[" * 100_000, "mine.json: not valid JSON: nested too deeply"),
        ("", None, "--data '': neither dolly nor finqa"),
        ("/mine", None, "--data /mine: there is no such file or folder"),
        ("~/mine", None, "--data ~/mine: there is no such file or folder; ~ is not expanded here"),
        ("mine/", None, "--data mine/: neither dolly nor finqa"),
        ("a" * 300, None, "neither dolly nor finqa"),
        ("a" * 300 + ".jsonl", None, "the name is too long"),
        ("none/mine.jsonl", None, "none/mine.jsonl: there is no such file"),
    ],
)
def test_bad_data_is_refused_and_nothing_is_written(
    model, tmp_path, monkeypatch, capsys, file, content, told
):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(file).write_text(content)
    assert prepare(model, Path("out"), "--data", file) == 2
    captured = capsys.readouterr()
    assert told in captured.err and "Traceback" not in captured.err
    assert not Path("out").exists()


def test_a_folder_that_is_named_like_a_file_is_refused(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").mkdir()
    assert prepare(model, Path("out"), "--data", "mine.jsonl") == 2
    assert capsys.readouterr().err == "error: --data mine.jsonl: this is a folder; a file is needed\n"


def test_a_folder_named_like_a_shipped_source_is_not_in_its_way(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("dolly").mkdir()
    assert prepare(model, Path("out"), "--data", "dolly", "mine.pdf") == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert "mine.pdf: there is no such file" in told


def test_what_was_there_stays_when_the_new_data_is_bad(model, fruits, tmp_path):
    assert prepare(model, tmp_path / "out", "--data", fruits) == 0
    before = [(tmp_path / "out" / file).read_bytes() for file in FILES]
    fruits.write_text(fruits.read_text() + "{\n")
    assert prepare(model, tmp_path / "out", "--data", fruits) == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == list(FILES)
    assert [(tmp_path / "out" / file).read_bytes() for file in FILES] == before


def test_a_full_disk_leaves_nothing_half_written(model, fruits, tmp_path, monkeypatch, capsys):
    import errno

    write_text = Path.write_text

    def until_full(path, *arguments, **options):
        if "val.jsonl" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", until_full)
    assert prepare(model, tmp_path / "out", "--data", fruits) == 2
    assert "no room left on the disk" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_without_data_is_refused(model, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("a")
    assert prepare(model, tmp_path / "out", "--data", tmp_path / "mine") == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told == f"error: --data {tmp_path / 'mine'}: no .parquet, .jsonl, .json, .csv, .tsv files in it"


def test_a_folder_with_one_of_finqas_files_is_refused(model, finqa_folder, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "dev.json").write_bytes((finqa_folder / "dev.json").read_bytes())
    assert prepare(model, tmp_path / "out", "--data", tmp_path / "mine") == 2
    assert (
        "train.json, test.json missing; of FinQA the folder must hold its own train.json"
        in capsys.readouterr().err
    )


def test_a_broken_question_of_finqa_is_named(model, finqa_folder, tmp_path, capsys):
    for file in FINQA_PARTS:
        (tmp_path / file).write_bytes((finqa_folder / file).read_bytes())
    rows = json.loads((tmp_path / "dev.json").read_text())
    del rows[1]["qa"]["question"]
    rows[2]["table"] = [["a", 3]]
    (tmp_path / "dev.json").write_text(json.dumps(rows))
    assert prepare(model, tmp_path / "out", "--data", tmp_path) == 2
    told = capsys.readouterr().err
    assert (
        "dev.json, row 2: question is missing" in told
        and "dev.json, row 3: table must be a list of rows" in told
    )


def test_idle_columns_and_unknown_templates_are_refused(model, tmp_path, capsys):
    assert prepare(model, tmp_path / "out", "--data", "dolly", "--columns", "instruction=a") == 2
    assert "--columns: says which columns your own data has" in capsys.readouterr().err
    assert prepare(model, tmp_path / "out", "--template", "alpaca") == 2
    assert "--template alpaca: unknown" in capsys.readouterr().err


def test_the_script_in_the_root_is_the_command(tmp_path):
    script = Path(__file__).parents[2] / "prepdata.py"
    result = subprocess.run(
        [sys.executable, script, "--data", "none.jsonl"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (2, "error: --data none.jsonl: there is no such file\n")


def test_the_script_without_the_package_says_what_to_do(tmp_path):
    script = Path(__file__).parents[2] / "prepdata.py"
    result = subprocess.run(
        [sys.executable, "-S", "-I", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode != 0 and "make setup" in result.stderr and "Traceback" not in result.stderr


def test_an_out_that_cannot_be_written_is_refused_before_the_work(model, tmp_path, capsys):
    (tmp_path / "taken").write_text("x")
    for out in ("taken", "taken/inside"):
        assert prepare(model, tmp_path / out) == 2
        assert "folder" in capsys.readouterr().err


def asked_about(things, kind="fruit") -> list[dict]:
    return [{"question": f"What is a {thing}?", "answer": f"A {thing} is a {kind}."} for thing in things]


def of(records) -> list[tuple[str, str]]:
    return [(record.instruction, record.output) for record in records]


def pairs(rows: list[dict]) -> list[tuple[str, str]]:
    return [(row["question"], row["answer"]) for row in rows]


def parts_in(out: Path) -> dict[str, list[Record]]:
    """The parts that were written; one without rows is an empty file."""
    paths = {split: out / f"{split}.jsonl" for split in ("train", "val", "test")}
    return {split: read_records(path) if path.stat().st_size else [] for split, path in paths.items()}


TOOLS = ["hammer", "saw", "chisel", "plane", "drill", "file", "vice", "rasp", "awl", "level"]
RIVERS = ["Rhine", "Nile", "Volga", "Indus", "Congo", "Loire"]


@pytest.fixture
def own(tmp_path) -> Path:
    """A folder with train.jsonl, valid.jsonl and test.jsonl; some of what is held out is in train.jsonl, too,
    or nearly.
    """
    folder = tmp_path / "mine"
    folder.mkdir()
    write_rows(folder / "valid.jsonl", [*asked_about(TOOLS, "tool"), asked_about(TOOLS, "tool")[0]])
    write_rows(folder / "test.jsonl", asked_about(RIVERS, "river"))
    near = [{"question": "WHAT IS A SAW??", "answer": "It cuts."}]
    write_rows(
        folder / "train.jsonl",
        [*asked_about(FRUITS), *asked_about(TOOLS[:1], "Tool"), *near, *asked_about(RIVERS[:2], "river")],
    )
    return folder


def test_ones_own_validation_file_is_not_trained_on(model, own, tmp_path, capsys):
    data = [own / "train.jsonl", own / "valid.jsonl"]
    assert prepare(model, tmp_path / "out", "--data", *data, "--json") == 0
    captured = capsys.readouterr()
    report, parts = json.loads(captured.out), parts_in(tmp_path / "out")
    tools = pairs(asked_about(TOOLS, "tool"))
    assert sorted(of(parts["val"])) == sorted([*tools, tools[0]]) and parts["test"] == []
    assert sorted(of(parts["train"])) == sorted(
        pairs([*asked_about(FRUITS), *asked_about(RIVERS[:2], "river")])
    )
    # One data set, named after its folder, and each row is accounted for.
    (counts,) = report["sources"].values()
    assert list(report["sources"]) == ["mine"] and {
        record.source for part in parts.values() for record in part
    } == {"mine"}
    assert counts["splits"] == {"train": 18, "val": 11, "test": 0}
    assert (counts["read"], counts["duplicates"]) == (31, 1)
    assert counts["left_out"] == {"near-duplicate of a held-out row": 1} and report["in_held_out_files"] == 1
    told = " ".join(captured.err.split())
    assert f"mine: {own / 'valid.jsonl'} for val.jsonl alone, as the name says" in told
    assert "in your own files for val or test, too, and are therefore not trained on: 1" in told
    assert (
        "warning: no rows for test.jsonl" in told
        and "name a file with --test, or evaluate with --data" in told
    )


def test_a_folder_is_a_data_set_whose_files_are_for_the_parts_that_they_name(model, own, tmp_path, capsys):
    (own / "more.csv").write_text("question;answer\nWhat is tea?;A drink.\n")
    (own / "notes.xlsx").write_text("no data")
    (own / "prepare_report.json").write_text("{}")
    assert prepare(model, tmp_path / "out", "--data", own, "--json") == 0
    captured = capsys.readouterr()
    parts = parts_in(tmp_path / "out")
    assert sorted(set(of(parts["val"]))) == sorted(pairs(asked_about(TOOLS, "tool")))
    assert sorted(of(parts["test"])) == sorted(pairs(asked_about(RIVERS, "river")))
    assert sorted(of(parts["train"])) == sorted([*pairs(asked_about(FRUITS)), ("What is tea?", "A drink.")])
    assert list(json.loads(captured.out)["sources"]) == ["mine"]
    assert f"{own / 'notes.xlsx'} is not read; save it as CSV" in " ".join(captured.err.split())


def test_files_named_by_options_are_kept_whole_whatever_they_are_called(model, own, tmp_path, capsys):
    for old, new in (("train", "faq"), ("valid", "check"), ("test", "final")):
        (own / f"{old}.jsonl").rename(own / f"{new}.jsonl")
    options = ("--data", own / "faq.jsonl", "--val", own / "check.jsonl", "--test", own / "final.jsonl")
    assert prepare(model, tmp_path / "out", *options, "--json") == 0
    report, parts = json.loads(capsys.readouterr().out), parts_in(tmp_path / "out")
    assert (len(parts["val"]), len(parts["test"])) == (11, 6) and sorted(of(parts["train"])) == sorted(
        pairs(asked_about(FRUITS))
    )
    assert list(report["sources"]) == ["faq", "check", "final"]
    assert report["settings"]["val"] == [str(own / "check.jsonl")] and report["in_held_out_files"] == 3


def test_what_is_asked_of_an_option_wins_over_the_folder_and_the_name(model, own, tmp_path):
    assert prepare(model, tmp_path / "out", "--data", own, "--val", own / "test.jsonl") == 0
    parts = parts_in(tmp_path / "out")
    assert set(of(parts["val"])) == {*pairs(asked_about(RIVERS, "river")), *pairs(asked_about(TOOLS, "tool"))}
    assert parts["test"] == [] and sorted(of(parts["train"])) == sorted(pairs(asked_about(FRUITS)))


def test_without_ones_own_validation_it_is_drawn_from_what_is_trained_on(model, own, tmp_path):
    assert prepare(model, tmp_path / "out", "--data", own / "train.jsonl", own / "test.jsonl") == 0
    parts = parts_in(tmp_path / "out")
    assert sorted(of(parts["test"])) == sorted(pairs(asked_about(RIVERS, "river")))
    assert parts["val"] and len(parts["train"]) > len(parts["val"])
    trained = {
        *pairs(asked_about(FRUITS)),
        *pairs(asked_about(TOOLS[:1], "Tool")),
        ("WHAT IS A SAW??", "It cuts."),
    }
    assert {*of(parts["val"]), *of(parts["train"])} == trained


def test_other_data_beside_ones_own_validation_file_is_all_trained_on(model, own, fruits, tmp_path):
    (own / "train.jsonl").write_text('{"question": "What is tea?", "answer": "A drink."}\n')
    assert prepare(model, tmp_path / "out", "--data", fruits, own / "train.jsonl", own / "valid.jsonl") == 0
    parts = parts_in(tmp_path / "out")
    assert {record.source for record in parts["val"]} == {"mine"} and len(parts["val"]) == len(TOOLS) + 1
    assert (len(parts["train"]), len(parts["test"])) == (len(FRUITS) + 1, 0)


def test_a_held_out_file_beside_data_without_a_part_is_held_out(model, own, fruits, tmp_path):
    """Somebody who names a test file means it, whether or not the other is called train."""
    assert prepare(model, tmp_path / "out", "--data", fruits, own / "test.jsonl") == 0
    assert sorted(of(parts_in(tmp_path / "out")["test"])) == sorted(pairs(asked_about(RIVERS, "river")))


@pytest.mark.parametrize("name", ["train.jsonl", "my_test.jsonl"])
def test_a_file_alone_is_split_whatever_its_name_and_that_is_said(model, fruits, tmp_path, capsys, name):
    path = fruits.rename(tmp_path / name)
    assert prepare(model, tmp_path / "out", "--data", path) == 0
    assert all(parts_in(tmp_path / "out").values())
    told = " ".join(capsys.readouterr().out.split())
    assert f"{path} split like any other file (--val and --test name files of your own for these)" in told
    assert {record.source for record in read_records(tmp_path / "out" / "train.jsonl")} == {path.stem}


def test_ones_own_validation_file_stays_whole_beside_ones_own_test_file(model, tmp_path, capsys):
    """Near copies stay in both, with or without groups; of a row that is in both files the test keeps the
    only one.
    """
    test = asked_about(TOOLS, "tool")
    near = [{"question": row["question"].upper(), "answer": f"{number}"} for number, row in enumerate(test)]
    for rows, group in ((asked_about(FRUITS), "a"), ([*near, test[0]], "b"), (test, "b")):
        for number, row in enumerate(rows):
            row["group"] = f"{group}{number}"
    write_rows(tmp_path / "train.jsonl", asked_about(FRUITS))
    write_rows(tmp_path / "val.jsonl", [*near, test[0]])
    write_rows(tmp_path / "test.jsonl", test)
    files = [tmp_path / f"{split}.jsonl" for split in ("train", "val", "test")]
    assert prepare(model, tmp_path / "out", "--data", *files, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows"] == {"train": len(FRUITS), "val": len(TOOLS), "test": len(TOOLS)}
    assert [one["duplicates"] for one in report["sources"].values()] == [1]


@pytest.mark.parametrize("grouped", ["train", "valid"])
def test_training_gives_way_also_where_rows_have_groups_of_the_users(model, own, tmp_path, grouped):
    path = own / f"{grouped}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_rows(path, [row | {"group": f"g{number}"} for number, row in enumerate(rows)])
    assert prepare(model, tmp_path / "out", "--data", own / "train.jsonl", own / "valid.jsonl") == 0
    parts = parts_in(tmp_path / "out")
    assert len(parts["val"]) == len(TOOLS) + 1
    assert sorted(of(parts["train"])) == sorted(
        pairs([*asked_about(FRUITS), *asked_about(RIVERS[:2], "river")])
    )


def test_a_folder_named_like_finqa_is_no_finqa(model, own, tmp_path, capsys):
    folder = own.rename(tmp_path / "finqa")
    assert prepare(model, tmp_path / "out", "--data", folder, "--json") == 0
    assert list(json.loads(capsys.readouterr().out)["sources"]) == ["own finqa"]


DATASETS = """
import json, pathlib
class Part:
    def to_json(self, name): pathlib.Path(name).write_text(json.dumps({"question": "a", "answer": "b"}))
def load_from_disk(folder):
    return {"train": Part()} if pathlib.Path(folder, "dataset_dict.json").exists() else Part()
"""


@pytest.mark.parametrize(
    ("mark", "made"), [("state.json", "it's mine.jsonl"), ("dataset_dict.json", "train.jsonl")]
)
def test_a_folder_of_save_to_disk_is_refused_with_a_command_that_makes_files_of_it(
    tmp_path, monkeypatch, mark, made
):
    """With a stand-in for `datasets`, which is not needed here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    Path("datasets.py").write_text(DATASETS)
    folder = Path("it's mine")
    folder.mkdir()
    (folder / mark).write_text("{}")
    (folder / "data-00000-of-00001.arrow").write_bytes(b"")
    told = find_source_problem(str(folder), SOURCES)
    assert told.startswith(f"{folder}: saved by `datasets`")
    command = shlex.split(told.partition("name that: ")[2])
    subprocess.run([sys.executable, *command[1:]], check=True)
    assert [row.values for row in read_rows(Path(made))] == [{"question": "a", "answer": "b"}]


def test_a_folder_whose_data_is_in_folders_below_names_them(tmp_path):
    (tmp_path / "README.md").write_text("a")
    (tmp_path / "my data").mkdir()
    (tmp_path / "my data" / "train.parquet").write_bytes(b"")
    problem = find_source_problem(str(tmp_path), SOURCES)
    assert problem.endswith(f"; name one of its folders: '{tmp_path / 'my data'}'")


def test_shards_and_words_around_the_part_make_one_data_set(model, tmp_path):
    folder = tmp_path / "any"
    folder.mkdir()
    for number in range(2):
        write_rows(folder / f"faq-train-0000{number}-of-00002.jsonl", asked_about(FRUITS[number::2]))
    write_rows(folder / "faq-validation-00000-of-00001.jsonl", asked_about(TOOLS, "tool"))
    assert prepare(model, tmp_path / "out", "--data", *sorted(folder.iterdir())) == 0
    parts = parts_in(tmp_path / "out")
    assert (len(parts["train"]), len(parts["val"])) == (len(FRUITS), len(TOOLS))
    assert {record.source for part in parts.values() for record in part} == {"faq"}


def test_a_folder_with_files_named_as_finqas_is_the_users_where_they_are_of_another_form(
    model, tmp_path, capsys
):
    folder = tmp_path / "alpaca"
    folder.mkdir()
    for name, rows in (("train", FRUITS), ("dev", TOOLS), ("test", RIVERS)):
        found = [
            {"instruction": f"What is a {one}?", "input": "", "output": "pre_text, table"} for one in rows
        ]
        (folder / f"{name}.json").write_text(json.dumps(found, indent=2))
    assert prepare(model, tmp_path / "out", "--data", folder, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows"] == {"train": len(FRUITS), "val": len(TOOLS), "test": len(RIVERS)}
    assert list(report["sources"]) == ["alpaca"]


def test_finqas_rows_give_way_to_ones_own_validation_file(model, finqa_folder, tmp_path, capsys):
    """Also its training rows, which otherwise stand as they are."""
    assert prepare(model, tmp_path / "alone", "--data", finqa_folder) == 0
    alone = parts_in(tmp_path / "alone")
    copied = alone["train"][0]
    mine = [
        {"instruction": copied.instruction.lower(), "output": "Another answer."},
        {"instruction": "Why?", "output": "So."},
    ]
    write_rows(tmp_path / "check.jsonl", mine)
    assert (
        prepare(model, tmp_path / "out", "--data", finqa_folder, "--val", tmp_path / "check.jsonl", "--json")
        == 0
    )
    sources = json.loads(capsys.readouterr().out.splitlines()[-1])["sources"]
    parts = parts_in(tmp_path / "out")
    assert [record.output for record in parts["val"] if record.source == "check"] == [
        "Another answer.",
        "So.",
    ]
    assert copied.id not in {record.id for record in parts["train"]}
    assert [record.id for record in parts["test"]] == [record.id for record in alone["test"]]
    assert sources["finqa"]["left_out"]["near-duplicate of a held-out row"] >= 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ["--data", "valid.jsonl", "test.jsonl"],
            "valid.jsonl, test.jsonl: named for validation or the test alone",
        ),
        (
            ["--data", "train.jsonl", "--val", "train.jsonl"],
            "train.jsonl: named for validation or the test alone",
        ),
        (
            ["--data", "train.jsonl", "--val", "valid.jsonl", "--test", "valid.jsonl"],
            "valid.jsonl: it is named for validation and",
        ),
        (["--data", "train.jsonl", "--val", "none.jsonl"], "--val none.jsonl: there is no such file"),
        (["--data", "train.jsonl", "--test", "dolly"], "--test dolly: there is no such file or folder"),
        (["--data", "train.jsonl", "--test", "a.xlsx"], "--test a.xlsx: there is no such file or folder"),
        (
            ["--data", "copy.jsonl", "--val", "valid.jsonl"],
            "nothing is left for train: all its rows are, or nearly are",
        ),
    ],
)
def test_parts_without_rows_of_their_own_are_refused(model, own, monkeypatch, capsys, options, told):
    monkeypatch.chdir(own)
    (own / "copy.jsonl").write_bytes((own / "valid.jsonl").read_bytes())
    assert prepare(model, Path("out"), *options) == 2
    assert told in capsys.readouterr().err and not Path("out").exists()


def test_a_dry_run_tells_the_parts(model, own, tmp_path, capsys):
    assert prepare(model, tmp_path / "out", "--data", own, "--dry-run", "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["reads"]["mine"].endswith("37 rows")
    assert "for test.jsonl alone" in " ".join(captured.err.split())


@pytest.fixture
def no_hub(monkeypatch):
    """Nobody may be asked for a name, not even whether the hub is there."""
    from loratune.system import hub

    for name in ("is_hub_reachable", "list_repository_files", "download"):
        monkeypatch.setattr(hub, name, lambda *_, name=name, **__: pytest.fail(f"the hub was asked: {name}"))


@pytest.mark.parametrize(
    "name",
    [
        "folder/mine.tsv",
        "folder/mine.txt",
        "folder/mine.xlsx",
        "folder/mine.jsonl.gz",
        "folder/mine.md",
        "folder/mine",
        "folder/deeper",
        "folder/deeper/mine.odd",
    ],
)
@pytest.mark.parametrize("there", [True, False])
def test_what_is_here_or_looks_like_a_path_is_no_name_on_the_hub(
    model, tmp_path, monkeypatch, capsys, no_hub, name, there
):
    monkeypatch.chdir(tmp_path)
    if there:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("deeper") else path.write_text("question\tanswer\na\tb\n")
    elif "." not in name:
        Path("folder").mkdir()  # a private folder, and a slip in the file's name
    code = prepare(model, Path("out"), "--data", name)
    told = capsys.readouterr().err
    assert code == 2 and told.startswith(("error: --data folder", "error: nothing is left for")), told


@pytest.mark.parametrize(
    "name",
    ["./a/b", "../a/b", "~/a/b", "~", "a\\b", "C:/a/b", "C:\\a", "/a/b", "a/b/", "a//b", ".", "..", "a b/c"],
)
def test_paths_that_lead_nowhere_are_no_names_on_the_hub(model, tmp_path, monkeypatch, no_hub, name):
    monkeypatch.chdir(tmp_path)
    assert prepare(model, Path("out"), "--data", name) == 2


@pytest.mark.parametrize("name", ["owner/data-2.5", "owner/data_v1.0.1", "owner/name/folder"])
def test_names_on_the_hub_may_have_dots(name):
    assert find_source(name, SOURCES) is SOURCES["hub"]
