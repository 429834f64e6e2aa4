"""Show an evaluation as tables on the terminal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from loratune.evaluation.metrics import list_shown_metrics
from loratune.evaluation.result import AdapterEvaluation, Evaluation, EvaluationPart, PairedScores, Spread
from loratune.evaluation.statistics import mean_and_deviation
from loratune.report.summary import BASE_NAMES, STRONGEST_MARK, format_count, format_measure, format_spread
from loratune.report.verdict import describe_verdict
from loratune.system.console import console, say

# The ways to ask the base: the names of their columns, in order, and what they mean.
COLUMNS = {"base_bare": "plain", "base": "base", "base_chat": "own"}
EXPLANATIONS = {
    "base_bare": "plain: the base without template, with the instruction and the input alone",
    "base": "base: in the adapter's template",
    "base_chat": "own: in its own chat template",
}


@dataclass(frozen=True)
class Line:
    """A line of the table: one metric of one part of the rows, for every adapter."""

    label: str
    metric: str
    parts: Sequence[PairedScores]  # one for each adapter


@dataclass(frozen=True)
class TableSection:
    heading: str
    note: str  # in the last column
    lines: list[Line]


def show_evaluation(evaluation: Evaluation) -> None:
    adapters = evaluation.all_adapters
    bases = list_measured_bases(evaluation)
    table = Table(
        title="Held-out rows, base against tuned",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in list_columns(adapters, bases):
        # Where the terminal is narrow, words give way, not digits.
        is_kept_whole = len(adapters) == 1 and column != ""
        table.add_column(
            column, justify="right" if column else "left", no_wrap=is_kept_whole, overflow="fold"
        )
    for section in build_table_sections(adapters):
        table.add_section()
        filler = [""] * (len(table.columns) - 2)
        table.add_row(section.heading, *filler, section.note, style="bold")
        for line in section.lines:
            table.add_row(f"  {line.label}", *format_cells(line, bases))
    console.print(table)
    for sentence in explain_columns(evaluation):
        say(sentence)
    for name, one in zip(shorten_names(adapters), adapters, strict=True):
        if verdict := describe_verdict(one):
            console.print(Text(f"{'' if len(adapters) == 1 else f'{name}: '}{verdict}", style="bold"))


def show_improvement(evaluation: Evaluation) -> None:
    """Show the loss and the perplexity alone, for all rows and for each source."""
    table = Table(title="Held-out responses: lower is better")
    for column in ("", "base", "tuned", "change", "95 % interval"):
        table.add_column(column, justify="right" if column else "left")
    for name, part in {"all": evaluation, **evaluation.by_source}.items():
        for metric in ("nll", "perplexity"):
            if metric in part.base:  # not where no row has a reference response
                line = format_measure(metric, part)
                table.add_row(f"{name}: {line.name}", line.base, line.tuned, line.change, line.interval)
    console.print(table)


def describe_reference(evaluation: AdapterEvaluation) -> str:
    """Say against which base rows improved, where that is not the one in the adapter's template."""
    if evaluation.strongest_base == "base":
        return ""
    return f", against {BASE_NAMES[evaluation.strongest_base]}"


def list_measured_bases(evaluation: Evaluation) -> list[str]:
    """Return which ways to ask the base were measured, in the order of the columns."""
    return [base for base in COLUMNS if base in evaluation.measured_bases]


def list_columns(adapters: Sequence[AdapterEvaluation], bases: Sequence[str]) -> list[str]:
    first = ["", *(COLUMNS[base] for base in bases)]
    if len(adapters) == 1:
        return [*first, "tuned", "change", "95 % interval"]
    return [*first, *shorten_names(adapters), "mean±deviation"]


def shorten_names(adapters: Sequence[AdapterEvaluation]) -> list[str]:
    """Return the folders' own names where these differ, else their paths."""
    names = [Path(one.adapter).name for one in adapters]
    return names if len(set(names)) == len(names) else [one.adapter for one in adapters]


def build_table_sections(adapters: Sequence[AdapterEvaluation]) -> Iterator[TableSection]:
    """Yield a section for all rows, each source, the loss in each category, and the plain text."""
    first = adapters[0]
    yield build_part_section("all", adapters)
    if len(first.by_source) > 1:
        for name in first.by_source:
            yield build_part_section(name, [one.by_source[name] for one in adapters])
    categories = {
        f"{name}: {part.rows:,}": [one.by_category[name] for one in adapters]
        for name, part in first.by_category.items()
        if "nll" in part.base
    }
    if categories:
        lines = [Line(label, "nll", parts) for label, parts in categories.items()]
        yield TableSection("loss by category: rows", "", lines)
    if first.forgetting:
        plain = [one.forgetting for one in adapters if one.forgetting]
        heading = f"plain text: {first.forgetting.windows:,} pieces"
        yield TableSection(heading, "", build_lines(plain))


def build_part_section(name: str, parts: Sequence[EvaluationPart]) -> TableSection:
    rows, answered = parts[0].rows, parts[0].answered_rows
    note = f"{answered:,} answered" if answered else ""
    return TableSection(f"{name}: {format_count(rows, 'row')}", note, build_lines(parts))


def build_lines(parts: Sequence[PairedScores]) -> list[Line]:
    return [
        Line(metric.title, name, parts)
        for name, metric in list_shown_metrics().items()
        if name in parts[0].base
    ]


def format_cells(line: Line, bases: Sequence[str]) -> list[str]:
    """Format the bases' numbers, then the tuned one with its change, or several tuned ones and their mean."""
    first = format_measure(line.metric, line.parts[0])
    cells = [first.mark_base(base) for base in bases]
    if not any(cells):
        cells[0] = first.base  # of plain text, which has no template, and so no column of its own
    if len(line.parts) == 1:
        return [*cells, first.tuned, first.change, first.interval]
    tuned = [format_measure(line.metric, part).tuned for part in line.parts]
    spread = Spread(**mean_and_deviation([part.tuned[line.metric] for part in line.parts]))
    return [*cells, *tuned, format_spread(line.metric, spread)]


def explain_columns(evaluation: Evaluation) -> Iterator[str]:
    """Say what the columns are, and what is in no column."""
    adapters = evaluation.all_adapters
    for name, one in zip(shorten_names(adapters), adapters, strict=True):
        prefix = "" if len(adapters) == 1 else f"{name}: "
        yield (
            f"{prefix}Of {one.rows - one.without_target:,} rows {one.improved:,} improved, {one.tied:,} "
            f"changed by at most {one.tie_threshold} nats a token, {one.regressed:,} regressed"
            f"{describe_reference(one)}."
        )
    if len(adapters) > 1:
        yield (
            f"mean±deviation: over the {len(adapters)} adapters; where only their seeds differ, it is chance."
        )
    if evaluation.chosen_facts:
        yield f"FinQA's rows show {evaluation.chosen_facts} facts."
    if evaluation.without_target:
        yield (
            "Rows without a reference response, which are answered and scored, but in no loss: "
            f"{evaluation.without_target:,}."
        )
    if evaluation.over_samples:
        yield (
            f"±: standard deviation of the score over {evaluation.decoding['samples']} samples of every "
            "answer."
        )
    if evaluation.split_ids:
        yield (
            f"(all): of all {evaluation.split_ids:,} questions in FinQA's part; those without an answer "
            "count as wrong."
        )
    bases = list_measured_bases(evaluation)
    if len(bases) > 1:
        yield f"{'; '.join(EXPLANATIONS[base] for base in bases)}."
        yield f"{STRONGEST_MARK}: the strongest way to ask the base, which the change is measured against."
    if evaluation.forgetting:
        yield (
            f"plain text: {evaluation.forgetting.text}, without a prompt; where the loss rises, something "
            "was forgotten."
        )
