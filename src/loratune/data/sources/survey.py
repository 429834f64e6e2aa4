"""What a source holds before it is prepared, and how long making its records will take."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from loratune.data.example import Record
from loratune.data.sources.loaded import SourceData
from loratune.tasks.finqa.questions import FinqaOptions, build_finqa_records, read_questions

SAMPLE_QUESTIONS = 64  # FinQA questions of each part that are made into records


@dataclass(frozen=True)
class Survey:
    name: str
    origin: str
    rows: int | None  # None where they are not on this machine yet
    seconds: float = 0.0  # to make all its records, once it is read
    sample: list[Record] = field(default_factory=list)


def survey_records(*parts: SourceData) -> Survey:
    """Of a source, in one part or several, whose records are made as fast as it is read."""
    records = [record for one in parts for record in one.records]
    return Survey(parts[0].name, ", ".join(one.origin for one in parts), len(records), sample=records)


def survey_finqa(source: str | Path, options: FinqaOptions) -> Survey:
    """The facts of some questions are ranked, and that is timed."""
    origin, parts = read_questions(source)
    seconds, sample = 0.0, []
    for split, questions in parts.items():
        started = time.perf_counter()
        made = list(build_finqa_records(questions[:SAMPLE_QUESTIONS], split, options))
        seconds += (
            (time.perf_counter() - started) * len(questions) / max(len(questions[:SAMPLE_QUESTIONS]), 1)
        )
        sample += made
    return Survey("finqa", origin, sum(map(len, parts.values())), seconds, sample)
