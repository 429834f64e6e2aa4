"""Show on the terminal what `loratune prepare` did."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from loratune.data.bad_rows import MAX_LISTED
from loratune.data.end_markers import describe_end_markers
from loratune.data.prepare_report import TOKEN_KINDS
from loratune.data.split import SPLITS
from loratune.data.tokenized import describe_conversations
from loratune.system.console import console
from loratune.system.messages import say, warn

WARN_SHARE = 0.05  # share of a source's rows from which on shortening is worth a warning


def show_summary(report: dict, out: Path, task_lines: Sequence[str]) -> None:
    """Show the report as a table, then what deserves a sentence.

    Args:
        report: as in prepare_report.json.
        out: the folder that the data was written to.
        task_lines: what the tasks say of the report.
    """
    sources = report["sources"]
    table = Table("", *sources, title=f"Prepared data (tokens as {report['tokenizer']} counts them)")
    for column in table.columns[1:]:
        column.justify = "right"
    lines = {
        "rows read": lambda source: source["read"],
        "left out": lambda source: sum(source["left_out"].values()),
        "duplicates": lambda source: source["duplicates"],
        **{f"rows in {split}.jsonl": lambda source, split=split: source["splits"][split] for split in SPLITS},
        **{f"tokens, {kind}": lambda source, kind=kind: source["tokens"][kind] for kind in TOKEN_KINDS},
    }
    for title, count in lines.items():
        table.add_row(title, *(f"{count(source):,}" for source in sources.values()))
    console.print(table)
    for name, source in sources.items():
        reasons = "".join(f"; {count:,} left out ({reason})" for reason, count in source["left_out"].items())
        say(f"{name}: from {source['origin']}{reasons}")
        for notes in source.get("files", []):
            show_file_notes(notes)
        show_truncation(name, source, report["settings"]["max_tokens"])
        if markers := describe_end_markers(source):
            say(f"{name}: {markers} (the files hold them)")
        for sentence in describe_conversations(source):
            say(f"{name}: {sentence}")
    for line in task_lines:
        say(line)
    say(f"Written: {out}/train.jsonl val.jsonl test.jsonl prepare_report.json")


def show_file_notes(notes: dict) -> None:
    """Show which columns of a user's file were used, and what was left out."""
    used = ", ".join(f"{role} = {column}" for role, column in notes["columns"].items())
    unused = f"; unused columns: {', '.join(map(str, notes['unused']))}" if notes["unused"] else ""
    say(f"{notes['file']}: {used}{unused}")
    for what, count in notes["counts"].items():
        say(f"{notes['file']}: {count:,} {what}")
    for problem in notes["warnings"]:
        warn(f"{notes['file']}: {problem}")
    for problem in notes["bad_rows"][:MAX_LISTED]:
        warn(f"left out: {problem}")
    if (more := len(notes["bad_rows"]) - MAX_LISTED) > 0:
        warn(f"left out: {more:,} more, listed in prepare_report.json")


def show_truncation(name: str, source: dict, max_tokens: int) -> None:
    cut = {what: source[what] for what in ("inputs_cut", "responses_cut", "dropped") if source[what]}
    if cut:
        amounts = ", ".join(f"{number:,} {what.replace('_', ' ')}" for what, number in cut.items())
        tell = warn if sum(cut.values()) > WARN_SHARE * source["rows"] else say
        turns = (
            f"; of chats the {source['turns_cut']:,} turns that are oldest give way"
            if source["turns_cut"]
            else ""
        )
        tell(
            f"{name}: {amounts} when rows are shortened to {max_tokens} tokens for training (the files hold "
            f"them whole){turns}"
        )
