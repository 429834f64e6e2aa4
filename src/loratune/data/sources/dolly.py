"""databricks-dolly-15k: 15,000 instructions with responses by Databricks' employees (CC BY-SA 3.0)."""

from loratune.data import snapshot
from loratune.data.example import Record, compute_content_id
from loratune.data.jsonl import read_text_field
from loratune.data.sources.files import convert_rows
from loratune.data.sources.hub import download_dataset_files
from loratune.data.sources.loaded import SourceData
from loratune.data.sources.readers import FileRow, read_rows

REPOSITORY = "databricks/databricks-dolly-15k"


def load_dolly(from_hub: bool) -> SourceData:
    if from_hub:
        rows = [row for file in download_dataset_files(REPOSITORY) for row in read_rows(file)]
        return SourceData("dolly", f"{REPOSITORY} on the Hugging Face hub", convert_dolly_rows(rows))
    rows = [
        FileRow(f"dolly.jsonl.xz, row {number}", row) for number, row in enumerate(snapshot.read("dolly"), 1)
    ]
    return SourceData("dolly", "the shipped snapshot", convert_dolly_rows(rows))


def convert_dolly_rows(rows: list[FileRow]) -> list[Record]:
    """The context becomes the input. Raises UserError where the instruction or the response is missing."""
    return convert_rows(rows, convert_dolly_row)


def convert_dolly_row(row: dict) -> Record:
    instruction, response = (read_text_field(row, name).strip() for name in ("instruction", "response"))
    context, category = (
        read_text_field(row, name, required=False).strip() for name in ("context", "category")
    )
    return Record(
        instruction,
        context,
        response,
        id=f"dolly-{compute_content_id(instruction, context, response)}",
        source="dolly",
        meta={"category": category} if category else {},
    )
