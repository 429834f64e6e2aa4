"""FinQA as a data source: its official splits from the package, the hub or a folder with its own files."""

import os
import time
from dataclasses import replace
from pathlib import Path

from loratune.data import snapshot
from loratune.data.compared_texts import normalize_text
from loratune.data.sources.base import ON_THE_HUB, DataSet, SourceOptions, Survey
from loratune.data.sources.files import convert_rows
from loratune.data.sources.hub import download_dataset_files
from loratune.data.sources.loaded import SourceData
from loratune.data.sources.paths import is_folder, read_first_fields
from loratune.data.sources.readers import FileRow, read_rows
from loratune.data.sources.split_names import detect_split
from loratune.data.split import HELD_OUT
from loratune.errors import UserError
from loratune.system.messages import track
from loratune.tasks.finqa.questions import Question, parse_question
from loratune.tasks.finqa.records import FinqaOptions, build_finqa_records, get_target, is_scored

REPOSITORY = "PTPReasoning/finqa"
FILES = {"train": "train.json", "val": "dev.json", "test": "test.json"}
OWN_FIELDS = {"pre_text", "table"}  # of every entry of FinQA's own files
TAKE_SHIPPED_COPY = "take the shipped copy with `source` snapshot"
SAMPLE_QUESTIONS = 64  # of each split, made into records for a survey


class FinqaSource:
    """`finqa`, or a folder with FinQA's own three files."""

    shipped = True
    takes_columns = False
    gathers_files = False
    settings = ("finqa_target", "fact_tokens")

    def recognizes(self, name: str) -> bool:
        return name == "finqa" or (is_folder(name) and is_finqa(Path(name)))

    def find_problem(self, name: str) -> str:
        if name == "finqa":
            return ""
        needed = ", ".join(FILES.values())
        missing = ", ".join(file for file in FILES.values() if not os.path.isfile(Path(name) / file))
        return f"{name}: {missing} missing; of FinQA the folder must hold its own {needed}" if missing else ""

    def load(self, data_set: DataSet, options: SourceOptions) -> list[SourceData]:
        return load_finqa(choose_origin(data_set.name, options.from_hub), choose_finqa_options(options))

    def survey(self, data_set: DataSet, options: SourceOptions) -> Survey:
        origin = choose_origin(data_set.name, options.from_hub)
        if origin == "hub":
            return Survey("finqa", ON_THE_HUB, rows=None)
        return survey_finqa(origin, choose_finqa_options(options))


def choose_origin(name: str, from_hub: bool) -> str | Path:
    """Return "hub", "snapshot" or the folder of that name."""
    if name != "finqa":
        return Path(name)
    return "hub" if from_hub else "snapshot"


def choose_finqa_options(options: SourceOptions) -> FinqaOptions:
    return FinqaOptions(
        options.settings["finqa_target"],
        options.settings["fact_tokens"],
        lambda texts: options.count_tokens(texts, "tokens of FinQA's facts"),
    )


def is_finqa(folder: Path) -> bool:
    """Tell whether a folder's files are in FinQA's form, not only named like FinQA's."""
    return any(read_first_fields(folder / file) >= OWN_FIELDS for file in FILES.values())


def load_finqa(source: str | Path, options: FinqaOptions) -> list[SourceData]:
    """Read the official splits as train, val and test.

    Args:
        source: "hub", "snapshot" or a folder with FinQA's own three files.
        options: how questions become records.
    """
    origin, by_split = read_questions(source)
    held_out = {normalize_text(question.text) for split in HELD_OUT for question in by_split[split]}
    return [
        build_source_data(
            split, questions, held_out if split == "train" else set(), origin=origin, options=options
        )
        for split, questions in by_split.items()
    ]


def read_questions(source: str | Path) -> tuple[str, dict[str, list[Question]]]:
    """Return where the questions come from, in words, and all of each split."""
    origin, rows = read_parts(source)
    return origin, {split: convert_rows(part, parse_question) for split, part in rows.items()}


def read_parts(source: str | Path) -> tuple[str, dict[str, list[FileRow]]]:
    if source == "snapshot":
        names = {split: f"finqa_{Path(file).stem}" for split, file in FILES.items()}
        rows = {
            split: [
                FileRow(f"{name}, row {number}", row) for number, row in enumerate(snapshot.read(name), 1)
            ]
            for split, name in names.items()
        }
        return "the shipped snapshot", rows
    if source == "hub":
        files = download_dataset_files(REPOSITORY)
        rows = {
            split: [row for file in files if detect_split(file.name) == split for row in read_rows(file)]
            for split in FILES
        }
        if missing := [split for split, of_split in rows.items() if not of_split]:
            raise UserError(
                f"data set {REPOSITORY}: no file for {', '.join(missing)}", remedy=TAKE_SHIPPED_COPY
            )
        return f"{REPOSITORY} on {ON_THE_HUB}", rows
    return f"the folder {source}", {split: read_rows(Path(source) / file) for split, file in FILES.items()}


def read_test_prose() -> list[str]:
    """Return the sentences of each page of FinQA's shipped test questions, without tables and questions."""
    pages = {
        row["id"].rpartition("-")[0]: " ".join([*row["pre_text"], *row["post_text"]])
        for row in snapshot.read("finqa_test")
    }
    return list(pages.values())


def build_source_data(
    split: str, questions: list[Question], held_out: set[str], *, origin: str, options: FinqaOptions
) -> SourceData:
    """Make the records of one split, without the questions whose text is in `held_out`.

    A few questions are asked, word for word, about pages in two splits.

    Raises:
        UserError: no question has a response of the requested kind.
    """
    not_held_out = [question for question in questions if normalize_text(question.text) not in held_out]
    usable = [
        question
        for question in not_held_out
        if get_target(question, options.target) or (split in HELD_OUT and is_scored(question))
    ]
    left_out = {
        "question also held out": len(questions) - len(not_held_out),
        f"no {options.target}": len(not_held_out) - len(usable),
    }
    if not usable:
        response = "a program" if options.target == "program" else "an answer"
        raise UserError(
            f"finqa ({origin}): no question for {split} has {response}",
            remedy=f"choose the other `finqa_target`, or {TAKE_SHIPPED_COPY}",
        )
    records = list(track(build_finqa_records(usable, split, options), f"FinQA {split}", len(usable)))
    if split in HELD_OUT:  # scores are over all ids of a split, also those that have no row
        records = [replace(record, meta=record.meta | {"split_ids": len(questions)}) for record in records]
    return SourceData(
        "finqa", origin, records, split, {reason: count for reason, count in left_out.items() if count}
    )


def survey_finqa(source: str | Path, options: FinqaOptions) -> Survey:
    """Build the records of some questions, and estimate from that how long all of them take."""
    origin, by_split = read_questions(source)
    seconds, sample = 0.0, []
    for split, questions in by_split.items():
        sample_questions = questions[:SAMPLE_QUESTIONS]
        started = time.perf_counter()
        sample += build_finqa_records(sample_questions, split, options)
        seconds += (time.perf_counter() - started) * len(questions) / max(len(sample_questions), 1)
    return Survey("finqa", origin, sum(map(len, by_split.values())), seconds, sample)
