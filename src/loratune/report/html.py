"""Render the comparison as a page of its own: no other file, no network, readable without its script.

Texts from models and files are escaped by the template. The only markup that it takes as it is are our own
charts, in which matplotlib's writer and then ElementTree's have escaped the labels.
"""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import NamedTuple

from loratune.evaluation.metrics import METRICS
from loratune.evaluation.result import Evaluation
from loratune.report.answers import build_example_cards, build_prompt_card, classify_change
from loratune.report.charts import draw_changes_chart, draw_loss_chart, draw_parts_chart, outer_fences
from loratune.report.summary import (
    BASE_COLUMNS,
    Comparison,
    MeasureLine,
    Section,
    build_sections,
    describe_comparison,
    describe_forgetting,
    format_count,
    format_measures,
    format_percent,
    list_parts,
)
from loratune.report.verdict import describe_verdict


class Chart(NamedTuple):
    title: str
    svg: str
    caption: str


def render_comparison_page(comparison: Comparison) -> str:
    """Return the HTML of the page, below 2 MB for prompts and answers of ordinary length."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    pages = Environment(
        loader=PackageLoader("loratune", "report/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    pages.globals |= {"percent": format_percent, "counted": format_count, "bases_of": list_base_columns}
    evaluation = comparison.evaluation
    script = pages.get_template("page.js").render()
    return pages.get_template("page.html").render(
        comparison=comparison,
        evaluation=evaluation,
        sentence=describe_comparison(comparison),
        verdict=describe_verdict(evaluation) if evaluation else "",
        headlines=format_headlines(evaluation) if evaluation else [],
        sections=build_sections(evaluation) if evaluation else [],
        forgotten=describe_forgetting(evaluation) if evaluation else "",
        charts=[chart._replace(svg=Markup(chart.svg)) for chart in build_charts(comparison)],
        prompts=[build_prompt_card(place, row) for place, row in enumerate(comparison.rows, 1)],
        examples=build_example_cards(evaluation) if evaluation else [],
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def list_base_columns(section: Section) -> dict[str, str]:
    """Return the columns of a table for the ways to ask the base that were measured."""
    return {
        base: title for base, title in BASE_COLUMNS.items() if any(line.bases[base] for line in section.lines)
    }


def format_headlines(evaluation: Evaluation) -> list[MeasureLine]:
    """Format the metrics that stand out above the tables."""
    names = [name for name, metric in METRICS.items() if metric.stands_out]
    return [line.typeset() for line in format_measures(evaluation, names)]


def build_charts(comparison: Comparison) -> Iterator[Chart]:
    if any(row.loss is not None and row.tokens is not None for row in comparison.training):
        yield build_training_chart(
            [
                {name: value for name, value in asdict(row).items() if value is not None}
                for row in comparison.training
            ]
        )
    if comparison.evaluation:
        yield from build_evaluation_charts(comparison.evaluation)


def build_training_chart(rows: Sequence[dict]) -> Chart:
    validations = [row["val_nll"] for row in rows if "val_nll" in row]
    course = (
        f"Validation loss from {validations[0]:.3f} to {min(validations):.3f} at its best. "
        if validations
        else ""
    )
    steps = format_count(sum("loss" in row for row in rows), "step")
    return Chart(
        "The training run",
        draw_loss_chart(rows),
        f"{course}Training loss of {steps} (thin) and its moving average.",
    )


def build_evaluation_charts(evaluation: Evaluation) -> Iterator[Chart]:
    changes = [example.change for example in evaluation.examples if example.change is not None]
    if changes:
        states = [classify_change(change, evaluation.tie_threshold) for change in changes]
        counts = ", ".join(f"{states.count(state):,} {state}" for state in ("improved", "tied", "regressed"))
        low, high = ends = outer_fences(changes)
        beyond = sum(not low <= change <= high for change in changes)
        outermost = (
            f" The outermost bars hold {format_count(beyond, 'row')} from beyond the scale." if beyond else ""
        )
        yield Chart(
            "Change of each example",
            draw_changes_chart(changes, evaluation.tie_threshold, ends),
            f"{counts}.{outermost}",
        )
    losses = {
        name: part.difference["nll"]
        for name, part in list_parts(evaluation).items()
        if "nll" in part.difference and part.rows > 1
    }
    if len(losses) > 1:
        caption = "Mean change and 95 % interval (paired bootstrap); an interval across 0 is no clear change."
        yield Chart("By source and category", draw_parts_chart(losses), caption)
