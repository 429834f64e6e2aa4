"""databricks-dolly-15k: 15,000 instructions with responses by Databricks' employees (CC BY-SA 3.0)."""

from loratune.data import snapshot
from loratune.data.example import Record, content_id
from loratune.data.jsonl import text_in
from loratune.data.sources.files import pick
from loratune.data.sources.hub import dataset_files
from loratune.data.sources.loaded import Loaded
from loratune.data.sources.readers import FileRow, read_rows

REPOSITORY = "databricks/databricks-dolly-15k"


def load_dolly(from_hub: bool) -> Loaded:
    if from_hub:
        rows = [row for file in dataset_files(REPOSITORY) for row in read_rows(file)]
        return Loaded("dolly", f"{REPOSITORY} on the Hugging Face hub", dolly_records(rows))
    rows = [FileRow(f"dolly.jsonl.xz, row {number}", row) for number, row in enumerate(snapshot.read("dolly"), 1)]
    return Loaded("dolly", "the shipped snapshot", dolly_records(rows))


def dolly_records(rows: list[FileRow]) -> list[Record]:
    """The context becomes the input. Raises UserError where the instruction or the response is missing."""
    return pick(rows, dolly_record)


def dolly_record(row: dict) -> Record:
    instruction, response = (text_in(row, name).strip() for name in ("instruction", "response"))
    context, category = (text_in(row, name, needed=False).strip() for name in ("context", "category"))
    return Record(
        instruction,
        context,
        response,
        id=f"dolly-{content_id(instruction, context, response)}",
        source="dolly",
        meta={"category": category} if category else {},
    )
