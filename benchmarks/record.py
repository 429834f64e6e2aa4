"""The results file of a benchmark: a table, the commands that make it, the commit, the machine.

Every script prints its table, and with `--record NAME` writes it to `benchmarks/results/NAME.json`.
`python -m benchmarks.report` writes `docs/results/` from these files.
"""

import argparse
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from loratune.doctor.hardware import inspect_hardware
from loratune.system.atomic import write_text

ROOT = Path(__file__).parents[1]
RESULTS_FOLDER = Path(__file__).with_name("results")
MEASURED_CODE = ("src", "benchmarks/*.py")  # what a result depends on

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
Key = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$")]
Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]


class RecordModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Column(RecordModel):
    """A column of numbers. A cell with several numbers has them one after the other."""

    key: Key
    title: Text
    unit: str = ""  # after each cell, such as " GB" or "x"
    decimals: int = Field(default=0, ge=0, le=6)
    signed: bool = False  # +0.12 for a change
    separator: str = ", "  # between a cell's numbers: " to " for an interval

    def format(self, cell: float | list[float], decimals: int | None) -> str:
        cells = cell if isinstance(cell, list) else [cell]
        sign, places = "+" if self.signed else "", self.decimals if decimals is None else decimals
        return self.separator.join(f"{one:{sign},.{places}f}" for one in cells) + self.unit


class Row(RecordModel):
    name: Text
    values: Mapping[Key, float | list[float]]  # by column; blank where one is missing
    decimals: int | None = Field(default=None, ge=0, le=6)  # where they are the row's and not the columns'

    def number(self, key: str) -> float:
        """Return the only number of a cell."""
        value = self.values[key]
        assert not isinstance(value, list)
        return value


class Result(RecordModel):
    """What one run of a benchmark measured."""

    title: Text
    what: Text  # how it was measured, in a sentence or two
    commands: list[Text] = Field(min_length=1)  # in a shell, from the root of this repository
    commit: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{7,40}$")]
    date: date
    machine: Text
    columns: list[Column] = Field(min_length=1)
    rows: list[Row] = Field(min_length=1)
    # Whether a base that has a chat template of its own is asked in that; None where no base answers.
    base_in_own_template: bool | None = None
    notes: str = ""  # what a reader needs to judge it

    @model_validator(mode="after")
    def _has_a_column_for_each_value(self) -> "Result":
        keys = [column.key for column in self.columns]
        names = [row.name for row in self.rows]
        assert len(set(keys)) == len(keys), "two columns have the same key"
        assert len(set(names)) == len(names), "two rows have the same name"
        for row in self.rows:
            assert row.values.keys() <= set(keys), f"{row.name}: a value without a column"
        return self

    def column(self, key: str) -> Column:
        return next(column for column in self.columns if column.key == key)

    def format_cell(self, row: str, key: str) -> str:
        """Return one number as tables show it. Raises StopIteration or KeyError where it is not there."""
        found = next(one for one in self.rows if one.name == row)
        return self.column(key).format(found.values[key], found.decimals)

    def format_table(self, keys: Sequence[str] = ()) -> str:
        """Return the table, or these columns of it, in Markdown."""
        columns = [self.column(key) for key in keys] or self.columns
        lines = [["", *(column.title for column in columns)], ["---"] * (1 + len(columns))]
        for row in self.rows:
            cells = (
                column.format(row.values[column.key], row.decimals) if column.key in row.values else ""
                for column in columns
            )
            lines.append([row.name, *cells])
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


SPEED = Column(key="tokens_per_second", title="real tokens/s")
MEMORY = Column(key="peak_memory_gb", title="peak memory", unit=" GB", decimals=2)
LOSS = Column(key="loss", title="held-out loss", decimals=3)


def read_result(name: str) -> Result:
    return Result.model_validate_json((RESULTS_FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def write_result(name: str, result: Result) -> Path:
    path = RESULTS_FOLDER / f"{name}.json"
    write_text(path, result.model_dump_json(indent=1, exclude_defaults=True) + "\n")
    return path


def add_record_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--record", metavar="NAME", help="write the table to benchmarks/results/NAME.json")


def parse_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line; refuse to record code that no commit holds, before hours are spent on it."""
    options = parser.parse_args()
    if options.record and run_git("status", "--porcelain", "--", *MEASURED_CODE):
        parser.error("commit first: a recorded result names the commit that it was measured at")
    return options


def show_and_record(
    options: argparse.Namespace,
    *,
    title: str,
    what: str,
    columns: list[Column],
    rows: list[Row],
    commands: list[str] | None = None,
    base_in_own_template: bool | None = None,
    notes: str = "",
) -> None:
    """Print the table, and write the results file where one is asked for.

    Args:
        commands: what makes the result; by default the running script with its arguments.
    """
    result = Result(
        title=title,
        what=what,
        commands=commands or [describe_command(sys.argv)],
        commit=run_git("rev-parse", "--short=7", "HEAD") or "0000000",
        date=date.today(),
        machine=describe_machine(),
        columns=columns,
        rows=rows,
        base_in_own_template=base_in_own_template,
        notes=notes,
    )
    print(f"\n{result.title}\n{result.what}\n\n{result.format_table()}\n\n{result.machine}")
    if result.notes:
        print(result.notes)
    if options.record:
        print(f"Written to {write_result(options.record, result).relative_to(ROOT)}.")


def describe_command(argv: list[str]) -> str:
    """Return the command line of a script that was started with `python -m benchmarks.NAME`."""
    return shlex.join(["python", "-m", f"benchmarks.{Path(argv[0]).stem}", *argv[1:]])


def describe_machine() -> str:
    """Describe in words what speeds depend on. Its matrix products are timed now."""
    hardware = inspect_hardware(threads=0, device="cpu")
    processor = hardware.processor.replace("(R)", "").replace("(TM)", "")
    system = platform.freedesktop_os_release() if sys.platform == "linux" else {}
    parts = [
        f"{hardware.usable_cores} cores of {processor} ({describe_instructions()})",
        f"{hardware.memory / 1e9:.0f} GB",
        f"{system.get('NAME', platform.system())} {system.get('VERSION_ID', platform.release())}",
        f"torch {version_of_torch()}",
        f"products of {hardware.fp32 / 1e9:,.0f} GFLOP/s in fp32 and {hardware.bf16 / 1e9:,.0f} in bf16",
    ]
    if hardware.crowded:
        parts.append("shared machine: other programs used the same cores")
    return ", ".join(parts)


def describe_instructions() -> str:
    """Return the vector and matrix instructions that decide how fast fp32 and bf16 are."""
    import torch

    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        flags = set()
    names = {"amx_bf16": "AMX matrix units", "avx512_bf16": "bf16 instructions"}
    return " with ".join(
        [torch.backends.cpu.get_cpu_capability(), *([names[flag] for flag in names if flag in flags][:1])]
    )


def version_of_torch() -> str:
    import torch

    return torch.__version__.partition("+")[0]


def run_git(*words: str) -> str:
    """Return what git says; "" outside a checkout."""
    try:
        result = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return result.stdout.strip()
