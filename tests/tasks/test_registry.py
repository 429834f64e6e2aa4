"""A new source, task and metric, one line in a table each, work in every command."""

import json
from types import MappingProxyType

import pytest

from loratune.cli.main import main
from loratune.data.example import Record
from loratune.data.sources.base import DataSet, SourceOptions, Survey, survey_records
from loratune.data.sources.loaded import SourceData
from loratune.evaluation.metrics import METRICS
from loratune.generation.constrained import Constraint, TokenBytes
from loratune.report.schema import read_evaluation
from loratune.report.summary import format_measures
from loratune.tasks.base import Metric, Task, TaskScore
from loratune.tasks.registry import PLAIN_TASK, SOURCES, TASKS, find_result, task_of
from support.evaluating import ROWS, evaluate, make_place, measured, write_rows
from support.small_models import save_model

WORDS = ("apple", "banana", "cherry", "date", "fig", "grape", "kiwi", "lemon", "mango", "nut", "plum", "tea")


class SpellingSource:
    """Words to be counted, of which there are a few."""

    shipped = True
    takes_columns = False
    gathers_files = False
    settings = ("seed",)

    def recognizes(self, name: str) -> bool:
        return name == "spelling"

    def find_problem(self, name: str) -> str:
        return ""

    def load(self, data_set: DataSet, options: SourceOptions) -> list[SourceData]:
        counts = options.count_tokens(WORDS, "tokens of words")
        records = [
            Record(
                f"Count the letters of {word}.",
                "",
                str(len(word)),
                id=word,
                source="spelling",
                meta={"letters": len(word), "tokens": count, "seed": options.settings["seed"]},
            )
            for word, count in zip(WORDS, counts, strict=True)
        ]
        return [SourceData(data_set.name, "a list of words", records)]

    def survey(self, data_set: DataSet, options: SourceOptions) -> Survey:
        return survey_records(*self.load(data_set, options))


class SpellingTask(Task):
    metrics = MappingProxyType({"letters_right": Metric("right counts, % ↑", 100, 1)})
    scores_over_split = ("letters_right",)
    has_results = True

    def owns(self, record: Record) -> bool:
        return "letters" in record.meta

    def score(self, text: str, record: Record) -> TaskScore:
        result = self.find_result(text)
        return TaskScore({"letters_right": float(result == record.meta["letters"])}, result)

    def get_wanted_result(self, record: Record) -> int:
        return record.meta["letters"]

    def find_result(self, text: str) -> int | None:
        return int(text) if text.isdecimal() and text.isascii() else None

    def count_split_ids(self, records: list[Record]) -> int | None:
        return len(records) + 2

    def select_facts(self, record: Record, facts: str) -> Record | None:
        return None if record.meta.get("letters") == 3 else record

    def report_on(self, parts: dict[str, list[Record]]) -> dict:
        return {"longest_word": max(record.meta["letters"] for part in parts.values() for record in part)}

    def explain_report(self, report: dict) -> list[str]:
        return [
            f"The longest word has {report['longest_word']} letters (`seed` {report['settings']['seed']})."
        ]


@pytest.fixture
def spelling(monkeypatch):
    """A registered source and its task, each by one line."""
    monkeypatch.setitem(SOURCES, "spelling", SpellingSource())
    monkeypatch.setitem(TASKS, "spelling", SpellingTask())


@pytest.fixture
def place(tmp_path, monkeypatch):
    make_place(tmp_path, monkeypatch)
    return tmp_path


def spelling_row(word: str) -> dict:
    return {
        "instruction": f"Count the letters of {word}.",
        "input": "",
        "output": str(len(word)),
        "source": "spelling",
        "meta": {"letters": len(word)},
    }


def test_prepare_uses_a_new_source_and_reports_its_task(spelling, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "base")
    line = ["prepare", "--model", "base", "--data", "spelling", "--source", "snapshot", "--seed", "3"]
    assert main([*line, "--dry-run"]) == 0
    assert "Would read spelling: a list of words, 12 rows" in capsys.readouterr().out
    assert main(line) == 0
    report = json.loads((tmp_path / "data" / "prepare_report.json").read_text())
    assert report["sources"]["spelling"]["read"] == len(WORDS) and report["longest_word"] == 6
    assert "The longest word has 6 letters (--seed 3)." in capsys.readouterr().out
    rows = [
        json.loads(row)
        for name in ("train", "val", "test")
        for row in (tmp_path / "data" / f"{name}.jsonl").read_text().splitlines()
    ]
    # The byte-level tokenizer has one token a letter.
    assert len(rows) == len(WORDS) and all(row["meta"]["tokens"] == row["meta"]["letters"] for row in rows)
    assert {row["meta"]["seed"] for row in rows} == {3}


def test_unknown_source_is_refused_with_the_shipped_ones(spelling, capsys):
    assert main(["prepare", "--data", "spellings"]) == 2
    assert "spellings: neither dolly nor finqa nor spelling, nor a file" in capsys.readouterr().err
    assert main(["prepare", "--data", "spelling", "--columns", "output=b"]) == 2
    assert "but --data names none" in capsys.readouterr().err


def test_evaluate_uses_a_new_task_and_metric(spelling, place, monkeypatch, capsys):
    monkeypatch.setitem(
        METRICS, "spaces", Metric("spaces", score=lambda answer, text, record: text.count(" "))
    )
    monkeypatch.setitem(METRICS, "answers", Metric("answers", 1, 0, score_all=lambda written: len(written)))
    monkeypatch.setitem(METRICS, "letters_right", SpellingTask.metrics["letters_right"])
    write_rows(place, [*ROWS, *map(spelling_row, WORDS)])
    found = measured(place)
    part = found["by_source"]["spelling"]
    assert {"letters_right", "letters_right_all", "spaces", "answers"} <= part["tuned"].keys()
    assert part["split_ids"] == len(WORDS) + 2 and part["tuned"]["answers"] == len(WORDS)
    assert "letters_right" not in found["by_source"]["dolly"]["tuned"]
    assert "spaces" in found["by_source"]["dolly"]["tuned"]
    of_words = [example for example in found["examples"] if example["source"] == "spelling"]
    assert [example["wanted_result"] for example in of_words] == list(map(len, WORDS))
    assert all("result" in example["tuned"] for example in of_words)
    shown = capsys.readouterr().out
    assert all(title in shown for title in ("right counts, % ↑", "spaces", "answers"))
    lines = format_measures(read_evaluation(place / "evaluation.json").by_source["spelling"])
    assert {"right counts, % ↑", "spaces", "answers"} <= {line.name for line in lines}


def test_scores_over_a_split_belong_to_its_task(spelling, place):
    """Two tasks with official splits do not count each other's missing ids."""
    rows = [
        row | {"meta": row["meta"] | {"split_ids": 5}} if row["source"] == "finqa" else row for row in ROWS
    ]
    write_rows(place, [*rows, *map(spelling_row, WORDS)])
    found = measured(place)
    assert {name: part.get("split_ids") for name, part in found["by_source"].items()} == {
        "dolly": None,
        "finqa": 5,
        "spelling": len(WORDS) + 2,
    }
    assert found["split_ids"] == 5 + len(WORDS) + 2
    assert "letters_right_all" not in found["by_source"]["finqa"]["tuned"]


def test_evaluate_accepts_a_new_source_and_selects_its_facts(spelling, place, capsys):
    write_rows(place, [*ROWS, *map(spelling_row, WORDS)])
    assert measured(place, "--data", "spelling", "--generate", "0")["rows"] == len(WORDS)
    gold = [row | {"meta": row["meta"] | {"gold_facts": {"text_0": "a"}}} for row in ROWS]
    write_rows(place, [*gold, *map(spelling_row, WORDS)])
    capsys.readouterr()
    found = measured(place, "--facts", "gold", "--generate", "0")
    short = sum(len(word) == 3 for word in WORDS)
    assert found["without_gold_facts"] == short and found["rows"] == len(ROWS) + len(WORDS) - short


def test_constrained_answers_follow_the_new_tasks_constraint(spelling, place, monkeypatch):
    asked = []

    def build_constraint(self, record: Record, vocabulary: TokenBytes) -> Constraint | None:
        asked.append(record.meta["letters"])

    monkeypatch.setattr(SpellingTask, "build_constraint", build_constraint)
    write_rows(place, list(map(spelling_row, WORDS)))
    assert evaluate("--constrain") == 0
    assert asked == list(map(len, WORDS))


def test_unowned_rows_have_the_plain_task():
    plain = Record("a", "", "b", id="1", source="s")
    assert task_of(plain) is PLAIN_TASK and PLAIN_TASK.score("b", plain) == TaskScore()
    program = Record("a", "", "add(1, 2)", id="1", source="s", meta={"program": "add(1, 2)"})
    assert task_of(program) is TASKS["finqa"]


def test_find_result_uses_the_first_matching_task(spelling):
    assert find_result("add(1, 2)") == 3 and find_result("12") == 12 and find_result("a word") is None
