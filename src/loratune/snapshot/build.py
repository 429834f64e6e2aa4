"""Make the shipped data: `python -m loratune.snapshot.build --from DIR`.

DIR holds dolly.jsonl.xz and finqa_{train,dev,test}.json.xz as they were collected; SOURCES.md says from where.
The same input gives the same bytes.
"""

import argparse
import json
import lzma
from pathlib import Path

HERE = Path(__file__).parent
SPLITS = ("train", "dev", "test")
# In 77 training records the table's cells were rewritten to bare numbers and some labels moved: not FinQA any more.
REWRITTEN = "joined+numtable"


def main(source: Path) -> None:
    with lzma.open(source / "dolly.jsonl.xz", "rt", encoding="utf-8") as file:
        write_rows(HERE / "dolly.jsonl.xz", [json.loads(line) for line in file])
    for split in SPLITS:
        with lzma.open(source / f"finqa_{split}.json.xz", "rt", encoding="utf-8") as file:
            collected = json.load(file)
        rows = [finqa_row(record) for record in collected if record["_source"]["context_form"] != REWRITTEN]
        write_rows(HERE / f"finqa_{split}.jsonl.xz", rows)


def finqa_row(record: dict) -> dict:
    """One question with its page. Gold facts by id only: their text follows from the page."""
    asked = record["qa"]
    return {
        "id": record["id"],
        "context_form": record["_source"]["context_form"],
        "pre_text": record["pre_text"],
        "post_text": record["post_text"],
        "table": record["table"],
        "question": asked["question"],
        "answer": asked["answer"],
        "exe_ans": asked["exe_ans"],
        "program": asked["program"],
        "gold_inds": None if asked["gold_inds"] is None else list(asked["gold_inds"]),
    }


def write_rows(path: Path, rows: list[dict]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)
    path.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    print(f"{path.name}: {len(rows):,} rows, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="source", type=Path, required=True, metavar="DIR")
    main(parser.parse_args().source)
