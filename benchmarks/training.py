"""Speed and peak memory of `loratune train` with its default settings, and what it estimated beforehand.

    loratune prepare --source snapshot --model smollm2-135m
    python -m benchmarks.training --models smollm2-135m gpt2 --precisions fp32 bf16

Each run is the command itself, in a process of its own, on the prepared data: first with `--dry-run`, for its
estimate, then for --steps steps.
"""

import argparse
import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.peers import say
from benchmarks.record import MEMORY, Column, Row, add_record_option, parse_options, show_and_record
from loratune.models.load import PRECISIONS

ESTIMATED_SPEED = Column(key="estimated_speed", title="estimated")
ESTIMATED_MEMORY = Column(key="estimated_memory_gb", title="estimated", unit=" GB", decimals=1)
COLUMNS = [Column(key="tokens_per_second", title="tokens/s"), ESTIMATED_SPEED, MEMORY, ESTIMATED_MEMORY]
NO_VALIDATION_COST = ("--validations", "1", "--val-rows", "8", "--warmup", "0")


def main(options: Namespace) -> None:
    rows = [
        measure(model, precision, options) for model in options.models for precision in options.precisions
    ]
    show_and_record(
        options,
        title="Speed and memory of training with default settings",
        what=f"`loratune train` for {options.steps} steps: rank 16 on all linear layers, 1,024 tokens a "
        "step, Dolly and FinQA; one run each. Beside each figure is what the command estimated before "
        "the run.",
        columns=COLUMNS,
        rows=rows,
    )


def measure(model: str, precision: str, options: Namespace) -> Row:
    words = ("--model", model, "--precision", precision, "--steps", str(options.steps), *NO_VALIDATION_COST)
    with TemporaryDirectory() as folder:
        places = (
            "--data",
            str(options.data.resolve()),
            "--out",
            str(Path(folder, "adapter")),
            "--run",
            "benchmark",
        )
        expected = run_train([*words, *places, "--dry-run"], Path(folder))["expected"]
        measured = run_train([*words, *places], Path(folder))
    say(f"{model}, {precision}: {measured}, expected {expected}")
    return Row(
        name=f"{model}, {precision}",
        values={
            "tokens_per_second": measured["tokens_per_second"],
            "estimated_speed": round(expected["tokens_per_second"], 1),
            "peak_memory_gb": round(measured["peak_memory_mb"] / 1000, 3),
            "estimated_memory_gb": round(expected["peak_memory_mb"] / 1000, 3),
        },
    )


def run_train(words: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run `loratune train` in this folder and return its result."""
    command = [sys.executable, "-m", "loratune", "train", *words, "--json"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=folder).stdout)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["smollm2-135m"])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["fp32", "bf16"])
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="folder that `loratune prepare` wrote"
    )
    parser.add_argument("--steps", type=int, default=25)
    add_record_option(parser)
    return parser


if __name__ == "__main__":
    main(parse_options(build_parser()))
