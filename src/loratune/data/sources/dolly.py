"""databricks-dolly-15k: 15,000 instructions with responses by Databricks' employees (CC BY-SA 3.0)."""

from loratune.data import snapshot
from loratune.data.example import Record, compute_content_id
from loratune.data.json_values import read_text_field
from loratune.data.sources.base import ON_THE_HUB, DataSet, SourceOptions, Survey, survey_records
from loratune.data.sources.files import convert_rows
from loratune.data.sources.hub import download_dataset_files
from loratune.data.sources.loaded import SourceData
from loratune.data.sources.readers import FileRow, read_rows

REPOSITORY = "databricks/databricks-dolly-15k"


class DollySource:
    """`dolly`: databricks-dolly-15k."""

    shipped = True
    takes_columns = False
    gathers_files = False
    settings = ()

    def recognizes(self, name: str) -> bool:
        return name == "dolly"

    def find_problem(self, name: str) -> str:
        return ""

    def load(self, data_set: DataSet, options: SourceOptions) -> list[SourceData]:
        return [load_dolly(options.from_hub)]

    def survey(self, data_set: DataSet, options: SourceOptions) -> Survey:
        if options.from_hub:
            return Survey("dolly", ON_THE_HUB, rows=None)
        return survey_records(load_dolly(from_hub=False))


def load_dolly(from_hub: bool) -> SourceData:
    """Read all of Dolly, from the hub or from the shipped copy."""
    if from_hub:
        rows = [row for file in download_dataset_files(REPOSITORY) for row in read_rows(file)]
        return SourceData("dolly", f"{REPOSITORY} on {ON_THE_HUB}", convert_dolly_rows(rows))
    rows = [
        FileRow(f"dolly.jsonl.xz, row {number}", row) for number, row in enumerate(snapshot.read("dolly"), 1)
    ]
    return SourceData("dolly", "the shipped snapshot", convert_dolly_rows(rows))


def convert_dolly_rows(rows: list[FileRow]) -> list[Record]:
    """Convert rows to records; the context becomes the input.

    Raises:
        UserError: the instruction or the response of a row is missing.
    """
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
