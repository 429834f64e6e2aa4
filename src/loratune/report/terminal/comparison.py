"""Show a comparison on the terminal."""

from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from loratune.report.summary import format_number, format_percent
from loratune.system.console import console, make_printable, say

SIDE_NAMES = {"fine_tuned": "fine-tuned", "regular": "regular (base)"}


def show_comparison(rows: Sequence[dict], summary: Mapping[str, dict[str, float]]) -> None:
    for number, row in enumerate(rows, 1):
        table = Table(
            title=Text(f"{number}. {make_printable(row['prompt'])}"),
            title_justify="left",
            title_style="bold",
            expand=True,
        )
        for side, name in SIDE_NAMES.items():
            table.add_column(f"{name}, {format_length(row, side)}", ratio=1, overflow="fold")
        table.add_row(*(format_answer(row, side) for side in SIDE_NAMES))
        console.print(table)
    for side, name in SIDE_NAMES.items():
        of_side = summary[side]
        say(
            f"{name}: {format_percent(of_side['eos_rate'])} of the answers stopped at EOS, "
            f"{of_side['mean_tokens']:.0f} tokens on average, {format_percent(of_side['rep_4'])} repeated "
            "4-grams"
        )


def format_answer(row: dict, side: str) -> Text:
    text = Text(make_printable(row[side]))
    if f"{side}_result" in row:
        text.append(f"\n= {format_number(row[f'{side}_result'])}", style="bold green")
    return text


def format_length(row: dict, side: str) -> str:
    ended = "" if row[f"{side}_ended"] == "eos" else ", cut"
    return f"{row[f'{side}_tokens']} tokens{ended}"
