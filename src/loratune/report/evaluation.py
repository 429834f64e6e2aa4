"""The measured comparison as tables on the terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from loratune.console import console, say

# name in evaluation.json -> (what a person reads; an arrow points to what is better, factor, decimals)
MEASURES = {
    "nll": ("loss, nats a token ↓", 1, 3),
    "perplexity": ("perplexity ↓", 1, 2),
    "bits_per_byte": ("bits a byte ↓", 1, 3),
    "rouge_l": ("ROUGE-L, % ↑", 100, 1),
    "execution_accuracy": ("right results, % ↑", 100, 1),
    "program_accuracy": ("right programs, % ↑", 100, 1),
    "valid_programs": ("valid programs, % ↑", 100, 1),
    "eos_rate": ("ended by itself, %", 100, 1),
    "mean_tokens": ("tokens in an answer", 1, 1),
    "rep_4": ("repeated 4-grams, % ↓", 100, 1),
    "distinct_2": ("distinct 2-grams, %", 100, 1),
}  # without cap_rate: it is what eos_rate leaves


def show_evaluation(result: dict) -> None:
    adapters = result.get("adapters", [result])
    table = Table(title="Held-out rows, base against tuned", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in columns(result, adapters):
        table.add_column(column, justify="right" if column else "left", no_wrap=len(adapters) == 1, overflow="fold")
    for name, parts in named_parts(adapters):
        add_part(table, name, parts, "base_bare" in result)
    console.print(table)
    for line in explained(result, adapters):
        say(line)


def columns(result: dict, adapters: Sequence[dict]) -> list[str]:
    first = ["", *(["bare"] if "base_bare" in result else []), "base"]
    if len(adapters) == 1:
        return [*first, "tuned", "change", "95 % interval"]
    return [*first, *(column for name in short_names(adapters) for column in (name, "change"))]


def short_names(adapters: Sequence[dict]) -> list[str]:
    """The folders' own names where these differ, else their paths."""
    names = [Path(one["adapter"]).name for one in adapters]
    return names if len(set(names)) == len(names) else [one["adapter"] for one in adapters]


def named_parts(adapters: Sequence[dict]) -> list[tuple[str, list[dict]]]:
    """All rows, each source, each category (its loss alone) and the plain text, each as all adapters have it."""
    first = adapters[0]
    found = [(f"all: {first['rows']:,} rows", list(adapters))]
    for group in ("by_source", "by_category"):
        if len(first[group]) > 1:
            for name, part in first[group].items():
                parts = [one[group][name] for one in adapters]
                found.append((f"{name}: {part['rows']:,} rows", parts if group == "by_source" else list(map(loss_alone, parts))))
    return [*found, ("plain text", [one["forgetting"] for one in adapters])]


def loss_alone(part: dict) -> dict:
    models = {name: {"nll": part[name]["nll"]} for name in ("base", "base_bare", "tuned") if name in part}
    return {**models, "difference": part["difference"]}


def add_part(table: Table, name: str, parts: Sequence[dict], with_bare: bool) -> None:
    """A heading, then a line for each measure; an interval only where there is one adapter."""
    table.add_section()
    answered = parts[0].get("answered_rows")
    table.add_row(name, *[""] * (len(table.columns) - 2), f"{answered:,} answered" if answered else "", style="bold")
    for measure, (words, factor, decimals) in MEASURES.items():
        if measure in parts[0]["base"]:
            cells = [f"{factor * parts[0]['base'][measure]:.{decimals}f}"]
            if with_bare:
                bare = parts[0].get("base_bare")
                cells.insert(0, f"{factor * bare[measure]:.{decimals}f}" if bare else "")
            for part in parts:
                change, interval = changed(part["difference"].get(measure), factor, decimals)
                cells += [f"{factor * part['tuned'][measure]:.{decimals}f}", change]
            table.add_row(f"  {words}", *cells, *([interval] if len(parts) == 1 else []))


def changed(difference: dict | None, factor: int, decimals: int) -> tuple[str, str]:
    """The mean change and its interval; blank where none was computed."""
    if difference is None:
        return "", ""
    mean, low, high = (f"{factor * value:+.{decimals}f}" for value in (difference["mean"], *difference["interval"]))
    return mean, f"{low} to {high}"


def explained(result: dict, adapters: Sequence[dict]) -> list[str]:
    """What the columns are, and what is in no column."""
    told = [
        f"{'' if len(adapters) == 1 else name + ': '}Of {one['rows']:,} rows {one['improved']:,} improved, "
        f"{one['tied']:,} changed by at most {one['tie_threshold']} nats a token, {one['regressed']:,} regressed."
        for name, one in zip(short_names(adapters), adapters, strict=True)
    ]
    if "spread" in result:
        loss = result["spread"]["nll"]
        told.append(
            f"Loss over {len(adapters)} adapters: {loss['mean']:.3f}, standard deviation {loss['standard_deviation']:.3f}."
        )
    if "base_bare" in result:
        told.append("bare: the base with the instruction and the input alone as its prompt; base: with the adapter's template.")
    plain = result["forgetting"]
    told.append(f"plain text: {plain['windows']:,} pieces of {plain['text']}; a loss that rises there is what was forgotten.")
    return told
