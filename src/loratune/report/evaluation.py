"""The measured comparison as a table on the terminal."""

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
}


def show_evaluation(result: dict) -> None:
    table = Table(title="Held-out rows, base against tuned", title_justify="left")
    for column in ("", "base", "tuned", "change", "95 % interval"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    sources = result["by_source"] if len(result["by_source"]) > 1 else {}
    for name, part in {"all": result, **sources}.items():
        add_part(table, name, part)
    console.print(table)
    say(
        f"Of {result['rows']:,} rows {result['improved']:,} improved, {result['tied']:,} changed by at most "
        f"{result['tie_threshold']} nats a token, {result['regressed']:,} regressed."
    )


def add_part(table: Table, name: str, part: dict) -> None:
    answered = f", {part['answered_rows']:,} answered" if part["answered_rows"] else ""
    table.add_section()
    table.add_row(f"{name}: {part['rows']:,} rows{answered}", style="bold")
    for measure, (words, factor, decimals) in MEASURES.items():
        if measure in part["base"]:
            base, tuned = (f"{factor * part[model][measure]:.{decimals}f}" for model in ("base", "tuned"))
            change, interval = changed(part["difference"].get(measure), factor, decimals)
            table.add_row(f"  {words}", base, tuned, change, interval)


def changed(difference: dict | None, factor: int, decimals: int) -> tuple[str, str]:
    """The mean change and its interval; blank where none was computed."""
    if difference is None:
        return "", ""
    mean, low, high = (f"{factor * value:+.{decimals}f}" for value in (difference["mean"], *difference["interval"]))
    return mean, f"{low} to {high}"
