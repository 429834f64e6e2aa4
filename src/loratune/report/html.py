"""The comparison as a page of its own: no other file, no network, readable without its script.

Texts from models and files are escaped by the template. The only markup that it takes as it is are our own charts, in which
matplotlib's writer and then ElementTree's have escaped the labels.
"""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from loratune.report.answers import example_cards, prompt_card, state_of
from loratune.report.charts import changes_chart, loss_chart, outer_fences, parts_chart
from loratune.report.schema import Evaluation
from loratune.report.summary import Comparison, counted, forgotten, measures, parts_of, percent, sections, sentence

# What stands out; the table has all measures.
HEADLINES = ("nll", "perplexity", "bits_per_byte", "rouge_l", "execution_accuracy", "program_accuracy", "eos_rate", "rep_4")


class Chart(NamedTuple):
    title: str
    svg: str
    caption: str


def comparison_page(comparison: Comparison) -> str:
    """The HTML of the page, below 2 MB for prompts and answers of ordinary length."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    pages = Environment(
        loader=PackageLoader("loratune", "report/templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    pages.globals |= {"percent": percent, "counted": counted}
    evaluation = comparison.evaluation
    script = pages.get_template("page.js").render()
    return pages.get_template("page.html").render(
        comparison=comparison,
        evaluation=evaluation,
        sentence=sentence(comparison),
        headlines=measures(evaluation, HEADLINES) if evaluation else [],
        sections=sections(evaluation) if evaluation else [],
        forgotten=forgotten(evaluation) if evaluation else "",
        charts=[chart._replace(svg=Markup(chart.svg)) for chart in charts(comparison)],
        prompts=[prompt_card(place, row) for place, row in enumerate(comparison.rows, 1)],
        examples=example_cards(evaluation) if evaluation else [],
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def charts(comparison: Comparison) -> Iterator[Chart]:
    if any(row.loss is not None and row.tokens is not None for row in comparison.training):
        yield training_chart([row.model_dump(exclude_none=True) for row in comparison.training])
    if comparison.evaluation:
        yield from evaluation_charts(comparison.evaluation)


def training_chart(rows: Sequence[dict]) -> Chart:
    validations = [row["val_nll"] for row in rows if "val_nll" in row]
    course = f"Validation loss from {validations[0]:.3f} to {min(validations):.3f} at its best. " if validations else ""
    steps = counted(sum("loss" in row for row in rows), "step")
    return Chart("The training run", loss_chart(rows), f"{course}Training loss of {steps} (thin) and its moving average.")


def evaluation_charts(evaluation: Evaluation) -> Iterator[Chart]:
    changes = [example.change for example in evaluation.examples if example.change is not None]
    if changes:
        states = [state_of(change, evaluation.tie_threshold) for change in changes]
        told = ", ".join(f"{states.count(state):,} {state}" for state in ("improved", "tied", "regressed"))
        low, high = ends = outer_fences(changes)
        beyond = sum(not low <= change <= high for change in changes)
        outermost = f" The outermost bars hold {counted(beyond, 'row')} from beyond the scale." if beyond else ""
        yield Chart("Change of each example", changes_chart(changes, evaluation.tie_threshold, ends), f"{told}.{outermost}")
    losses = {
        name: part.difference["nll"] for name, part in parts_of(evaluation).items() if "nll" in part.difference and part.rows > 1
    }
    if len(losses) > 1:
        caption = "Mean change and 95 % interval (paired bootstrap); an interval across 0 is no clear change."
        yield Chart("By source and category", parts_chart(losses), caption)
