"""Render the comparison in Markdown, for an issue or a note: the page's numbers and the answers.

Texts from models and files stand in fenced blocks, in which nothing is markup; names in tables are escaped.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from loratune.report.answers import Card, build_example_cards, build_prompt_card
from loratune.report.summary import BASE_COLUMNS, Comparison, Section, build_sections, describe_comparison
from loratune.report.verdict import describe_verdict

COUNT_COLUMNS = {
    "rows": "rows",
    "inputs_cut": "input cut",
    "responses_cut": "response cut",
    "dropped": "dropped",
}


def render_comparison_markdown(comparison: Comparison) -> str:
    return "\n\n".join(render_blocks(comparison)) + "\n"


def render_blocks(comparison: Comparison) -> Iterator[str]:
    evaluation = comparison.evaluation
    yield f"# {escape_markdown(comparison.title)}"
    yield escape_markdown(describe_comparison(comparison))
    if comparison.evaluation and (verdict := describe_verdict(comparison.evaluation)):
        yield f"**{escape_markdown(verdict)}**"
    for section in build_sections(evaluation) if evaluation else ():
        yield f"## {escape_markdown(section.heading)}"
        yield render_measures_table(section)
    yield "## Prompts"
    for place, row in enumerate(comparison.rows, 1):
        yield from render_card(place, build_prompt_card(place, row))
    if answered := [card for card in build_example_cards(evaluation) if card.answers] if evaluation else []:
        yield "## Held-out examples"
        for place, card in enumerate(answered, 1):
            yield from render_card(place, card)
    yield "## How this was made"
    yield render_table(("", ""), {**comparison.settings, **comparison.versions}.items())
    for data, sources in comparison.counts.items():
        yield render_counts_table(data, sources)
    if comparison.commands:
        yield fence_text("\n".join(comparison.commands))


def render_measures_table(section: Section) -> str:
    lines = section.lines
    columns = {
        "": [line.name for line in lines],
        **{title: [line.mark_base(base) for line in lines] for base, title in BASE_COLUMNS.items()},
        "tuned": [line.tuned for line in lines],
        "change": [line.change for line in lines],
        "95 % interval": [line.interval for line in lines],
    }
    columns = {title: cells for title, cells in columns.items() if any(cells)}
    return render_table(list(columns), zip(*columns.values(), strict=True))


def render_counts_table(data: str, sources: Mapping[str, Mapping[str, int]]) -> str:
    rows = (
        [source, *(f"{count[what]:,}" if what in count else "" for what in COUNT_COLUMNS)]
        for source, count in sources.items()
    )
    return render_table((data, *COUNT_COLUMNS.values()), rows)


def render_card(place: int, card: Card) -> Iterator[str]:
    change = f" ({card.state}: {card.change}; {escape_markdown(card.source)})" if card.change else ""
    yield f"**{place}.**{change}"
    yield fence_text(card.prompt)
    for answer in card.answers:
        result = f" = {escape_markdown(answer.result)}" if answer.result else ""
        yield f"{answer.side}: {escape_markdown(answer.facts)}{result}"
        yield fence_text("".join(piece.text for piece in answer.pieces))
    if card.wanted:
        yield f"reference{f' (= {escape_markdown(card.wanted_result)})' if card.wanted_result else ''}:"
        yield fence_text(card.wanted)


def render_table(head: Sequence[str], rows) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(cell if cell == '---' else escape_markdown(cell) for cell in line)} |"
        for line in lines
    )


def fence_text(text: str) -> str:
    """Return the text in a code fence that is longer than any in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def escape_markdown(text: str) -> str:
    """Return the text as one line without markup."""
    return re.sub(r"([\\`*_\[\]<>|#@&~$!])", r"\\\1", " ".join(text.split()))
