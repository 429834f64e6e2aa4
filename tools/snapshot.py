"""Build the shipped data: `python -m tools.snapshot --from DIR`.

DIR holds dolly.jsonl.xz and finqa_{train,train_table_only,dev,test}.json.xz as they were collected;
SOURCES.md says from where. The same input gives the same bytes.

A training question without a recorded program gets one that `tools.programs` finds, in a field of its own. A
question whose page is known only by its table is included if its program needs nothing else.
"""

import argparse
import json
import lzma
from pathlib import Path

from loratune.data import snapshot
from loratune.tasks.finqa.facts import build_page_facts
from loratune.tasks.finqa.program import format_program, parse_program
from tools.programs import FormStatistics, find_program, has_numbers

SNAPSHOT_FOLDER = Path(snapshot.__file__).parent
SPLITS = ("train", "dev", "test")
# In 77 training records the table's cells are rewritten to plain numbers and some labels are moved, so these
# are no longer FinQA's.
REWRITTEN_FORM = "joined+numtable"


def main(source: Path) -> None:
    with lzma.open(source / "dolly.jsonl.xz", "rt", encoding="utf-8") as file:
        write_rows(SNAPSHOT_FOLDER / "dolly.jsonl.xz", [json.loads(line) for line in file])
    for split in SPLITS:
        with lzma.open(source / f"finqa_{split}.json.xz", "rt", encoding="utf-8") as file:
            collected = json.load(file)
        rows = [
            build_finqa_row(record)
            for record in collected
            if record["_source"]["context_form"] != REWRITTEN_FORM
        ]
        if split == "train":
            rows = add_found_programs(rows, source)
        write_rows(SNAPSHOT_FOLDER / f"finqa_{split}.jsonl.xz", rows)


def build_finqa_row(record: dict) -> dict:
    """Build the row of a question and its page; gold facts are ids, because the page has their texts."""
    qa = record["qa"]
    return {
        "id": record["id"],
        "context_form": record["_source"]["context_form"],
        "pre_text": record["pre_text"],
        "post_text": record["post_text"],
        "table": record["table"],
        "question": qa["question"],
        "answer": qa["answer"],
        "exe_ans": qa["exe_ans"],
        "program": qa["program"],
        "gold_inds": None if qa["gold_inds"] is None else list(qa["gold_inds"]),
    }


def add_found_programs(rows: list[dict], source: Path) -> list[dict]:
    """Add `found_program` to rows without a program, and append the rows that need only their table."""
    forms = FormStatistics.of(
        [(row["question"], parse_program(row["program"])) for row in rows if row["program"]]
    )
    with lzma.open(source / "finqa_train_table_only.json.xz", "rt", encoding="utf-8") as file:
        table_only = [build_finqa_row(record) for record in json.load(file)]
    for row in rows + table_only:
        if row["program"] or not isinstance(row["exe_ans"], int | float):
            continue
        if program := find_program(row["question"], build_row_facts(row), row["exe_ans"], forms):
            row["found_program"] = format_program(program)
    return rows + [row for row in table_only if needs_only_table(row)]


def needs_only_table(row: dict) -> bool:
    """Tell whether a row has a program with only numbers of the page's table."""
    return "found_program" in row or (
        bool(row["program"]) and has_numbers(build_row_facts(row), parse_program(row["program"]))
    )


def build_row_facts(row: dict) -> dict[str, str]:
    return build_page_facts(row["pre_text"], row["post_text"], row["table"])


def write_rows(path: Path, rows: list[dict]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)
    path.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    print(f"{path.name}: {len(rows):,} rows, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="source", type=Path, required=True, metavar="DIR")
    main(parser.parse_args().source)
