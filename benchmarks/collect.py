"""A results file from what `loratune evaluate` or `loratune quickstart` has written.

    loratune evaluate --adapter model/dolly --data data/dolly/test.jsonl
    python -m benchmarks.collect evaluation.json --record dolly --title Dolly --what "Two hours." \\
        --command "loratune train --config dolly" \\
        --command "loratune evaluate --adapter model/dolly --data data/dolly/test.jsonl"

Run it on the machine and at the commit of the evaluation. --run adds the speed and the memory of the
training run.
"""

import argparse
import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from benchmarks.record import Column, Row, add_record_option, parse_options, show_and_record
from loratune.evaluation.metrics import list_shown_metrics
from loratune.evaluation.result import Evaluation, Forgetting, PairedScores
from loratune.models.resolve import resolve_model
from loratune.models.tokenizer import Tokenizer
from loratune.report.schema import read_evaluation
from loratune.report.summary import find_strongest_base
from loratune.report.verdict import describe_verdict
from loratune.tasks.base import Metric

# Each way to ask the base, in order, and the tuned model -> the title of its column.
SIDES = {
    "base_bare": "base without template",
    "base": "base in the adapter's template",
    "base_chat": "base in its own template",
    "tuned": "tuned",
}
COLUMNS = [
    *(Column(key=side, title=title) for side, title in SIDES.items()),
    Column(key="change", title="change", signed=True),
    Column(key="interval", title="95 % interval", signed=True, separator=" to "),
]


def main(options: Namespace) -> None:
    evaluation = read_evaluation(options.evaluation)
    rows = list(build_rows(evaluation))
    used = {key for row in rows for key in row.values}
    tokenizer = Tokenizer.load(resolve_model(evaluation.base_model).folder)
    is_asked_in_own = evaluation.base_chat is not None
    notes = [describe_rows(evaluation), *(describe_run(run) for run in options.run)]
    show_and_record(
        options,
        title=options.title,
        what=options.what,
        commands=options.command,
        columns=[column for column in COLUMNS if column.key in used],
        rows=rows,
        base_in_own_template=is_asked_in_own if tokenizer.chat_template else None,
        notes=" ".join([*notes, options.notes]).strip(),
    )


def build_rows(evaluation: Evaluation) -> Iterator[Row]:
    """Yield a row for each metric: of all rows, then of each source, then of plain text."""
    sources = evaluation.by_source
    parts = {
        "": evaluation,
        **(sources if len(sources) > 1 else {}),
        "plain text": evaluation.forgetting,
    }
    for name, part in parts.items():
        for metric, shown in list_shown_metrics().items():
            if part and metric in part.base and (metric == "nll" or name != "plain text"):
                title = shown.title.rstrip(" ↑↓")
                yield build_row(f"{name}: {title}" if name else title, metric, part, shown)


def build_row(name: str, metric: str, part: PairedScores, shown: Metric) -> Row:
    """Build a row; the change is that from the base that is strongest in this metric."""

    def scale(value: float) -> float:
        return round(shown.factor * value, shown.decimals)

    values: dict[str, float | list[float]] = {
        # Plain text has no prompt, and so no template.
        "base_bare" if isinstance(part, Forgetting) and side == "base" else side: scale(measures[metric])
        for side in [*part.measured_bases, "tuned"]
        if (measures := part.get_measures(side)) and metric in measures
    }
    change = part.get_difference(find_strongest_base(metric, part)).get(metric)
    if change:
        values |= {"change": scale(change.mean), "interval": [scale(end) for end in change.interval]}
    return Row(name=name, values=values, decimals=shown.decimals)


def describe_rows(evaluation: Evaluation) -> str:
    counts = (
        f"{evaluation.rows:,} rows, {evaluation.answered_rows:,} of them answered; "
        f"{evaluation.improved:,} improved, {evaluation.regressed:,} regressed."
    )
    return f"{counts} {describe_verdict(evaluation)}".strip()


def describe_run(folder: Path) -> str:
    """Say what the run's summary.json says of its training."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return (
        f"Training: {summary['steps']:,} steps, {summary['tokens']:,} tokens in "
        f"{summary['elapsed_seconds'] / 60:.0f} minutes, {summary['tokens_per_second']:.0f} tokens/s, "
        f"peak memory {summary['peak_memory_mb'] / 1000:.2f} GB."
    )


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("evaluation", type=Path, help="evaluation.json")
    parser.add_argument("--run", type=Path, nargs="*", default=[], help="folders of the training runs")
    parser.add_argument("--title", required=True)
    parser.add_argument("--what", required=True, help="how it was measured, in a sentence or two")
    parser.add_argument(
        "--command", action="append", required=True, help="each command that made it, in order"
    )
    parser.add_argument("--notes", default="", help="what a reader needs to judge it")
    add_record_option(parser)
    return parser


if __name__ == "__main__":
    main(parse_options(build_parser()))
