"""An evaluation as tables on the terminal."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from loratune.evaluation.metrics import METRICS, list_shown_metrics
from loratune.evaluation.statistics import mean_and_deviation
from loratune.system.console import console, say


def show_evaluation(result: dict) -> None:
    adapters = result.get("adapters", [result])
    table = Table(
        title="Held-out rows, base against tuned",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in list_columns(result, adapters):
        # Where the terminal is narrow, words give way, not digits.
        kept_whole = len(adapters) == 1 and column != ""
        table.add_column(column, justify="right" if column else "left", no_wrap=kept_whole, overflow="fold")
    for heading, note, lines in build_table_sections(adapters):
        table.add_section()
        table.add_row(heading, *[""] * (len(table.columns) - 2), note, style="bold")
        for label, measure, parts in lines:
            table.add_row(f"  {label}", *format_cells(measure, parts, "base_bare" in result))
    console.print(table)
    for line in explain_columns(result, adapters):
        say(line)


def list_columns(result: dict, adapters: Sequence[dict]) -> list[str]:
    first = ["", *(["plain"] if "base_bare" in result else []), "base"]
    if len(adapters) == 1:
        return [*first, "tuned", "change", "95 % interval"]
    return [*first, *shorten_names(adapters), "mean±deviation"]


def shorten_names(adapters: Sequence[dict]) -> list[str]:
    """The folders' own names where these differ, else their paths."""
    names = [Path(one["adapter"]).name for one in adapters]
    return names if len(set(names)) == len(names) else [one["adapter"] for one in adapters]


# What a person reads, the metric, and the part of each adapter that has it.
TableLine = tuple[str, str, list[dict]]


def build_table_sections(adapters: Sequence[dict]) -> Iterator[tuple[str, str, list[TableLine]]]:
    """All rows, each source, the loss in each category, and the plain text: heading, a note beside it,
    lines.
    """
    yield format_heading("all", adapters), format_answered_count(adapters), build_lines(adapters)
    if len(adapters[0]["by_source"]) > 1:
        for name in adapters[0]["by_source"]:
            parts = [one["by_source"][name] for one in adapters]
            yield format_heading(name, parts), format_answered_count(parts), build_lines(parts)
    if with_loss := [name for name, part in adapters[0]["by_category"].items() if "nll" in part["base"]]:
        of_each = {name: [one["by_category"][name] for one in adapters] for name in with_loss}
        yield (
            "loss by category: rows",
            "",
            [(f"{name}: {parts[0]['rows']:,}", "nll", parts) for name, parts in of_each.items()],
        )
    plain = [one["forgetting"] for one in adapters]
    yield f"plain text: {plain[0]['windows']:,} pieces", "", build_lines(plain)


def format_heading(name: str, parts: Sequence[dict]) -> str:
    rows = parts[0]["rows"]
    return f"{name}: {rows:,} row{'s' if rows > 1 else ''}"


def format_answered_count(parts: Sequence[dict]) -> str:
    return f"{parts[0]['answered_rows']:,} answered" if parts[0]["answered_rows"] else ""


def build_lines(parts: Sequence[dict]) -> list[TableLine]:
    return [
        (metric.title, measure, list(parts))
        for measure, metric in list_shown_metrics().items()
        if measure in parts[0]["base"]
    ]


def format_cells(measure: str, parts: Sequence[dict], with_untemplated: bool) -> list[str]:
    """The base's numbers, then the adapter's with its change and an interval, or several adapters' and their
    mean.
    """
    factor, decimals = METRICS[measure].factor, METRICS[measure].decimals
    shown = [format_measure(measure, parts[0], "base")]
    if with_untemplated:
        shown.insert(0, format_measure(measure, parts[0], "base_bare"))
    shown += [format_measure(measure, part, "tuned") for part in parts]
    if len(parts) > 1:
        return [
            *shown,
            format_with_deviation(
                mean_and_deviation([part["tuned"][measure] for part in parts]), factor, decimals
            ),
        ]
    change, interval = format_change(parts[0]["difference"].get(measure), factor, decimals)
    # Of one row, an interval would have no width and look like certainty.
    return [*shown, change, interval if parts[0].get("rows") != 1 else ""]


def format_measure(measure: str, part: dict, model: str) -> str:
    """A model's number, with its standard deviation where there are several samples; blank where it was not
    measured.
    """
    if measure not in part.get(model, {}):
        return ""
    factor, decimals = METRICS[measure].factor, METRICS[measure].decimals
    if over_samples := part.get("over_samples", {}).get(model, {}).get(measure):
        return format_with_deviation(over_samples, factor, decimals)
    return f"{factor * part[model][measure]:.{decimals}f}"


def format_with_deviation(spread: dict[str, float], factor: int, decimals: int) -> str:
    return f"{factor * spread['mean']:.{decimals}f}±{factor * spread['standard_deviation']:.{decimals}f}"


def format_change(difference: dict | None, factor: int, decimals: int) -> tuple[str, str]:
    """The mean change and its interval; blank where none was computed."""
    if difference is None:
        return "", ""
    mean, low, high = (
        f"{factor * value:+.{decimals}f}" for value in (difference["mean"], *difference["interval"])
    )
    return mean, f"{low} to {high}"


def explain_columns(result: dict, adapters: Sequence[dict]) -> list[str]:
    """What the columns are, and what is in no column."""
    told = [
        f"{'' if len(adapters) == 1 else name + ': '}Of {one['rows'] - one.get('without_target', 0):,} rows "
        f"{one['improved']:,} improved, {one['tied']:,} changed by at most {one['tie_threshold']} nats a "
        "token, "
        f"{one['regressed']:,} regressed."
        for name, one in zip(shorten_names(adapters), adapters, strict=True)
    ]
    if "spread" in result:
        told.append(
            f"mean±deviation: over the {len(adapters)} adapters; where only their seeds differ, it is chance."
        )
    if facts := result["tuned"].get("facts"):
        told.append(f"FinQA's rows show {facts} facts.")
    if "without_target" in result:
        told.append(
            "Rows without a wanted response, which are answered and scored, and in no loss: "
            f"{result['without_target']:,}."
        )
    if "over_samples" in result:
        told.append(
            f"±: standard deviation of the score over {result['decoding']['samples']} samples of every "
            "answer."
        )
    if "split_ids" in result:
        told.append(
            f"(all): of all {result['split_ids']:,} questions in FinQA's part; those without an answer count "
            "as wrong."
        )
    if "base_bare" in result:
        told.append(
            "plain: the base without template, with the instruction and the input alone; base: with the "
            "adapter's template."
        )
    plain = result["forgetting"]
    told.append(
        f"plain text: {plain['text']}, without a prompt; where the loss rises, something was forgotten."
    )
    return told
