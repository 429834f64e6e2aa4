"""The comparison in Markdown, for an issue or a note: the page's numbers and the answers.

Texts from models and files stand in fenced blocks, in which nothing is markup; names in tables are escaped.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from loratune.report.cards import Card, example_card, parts_of, prompt_card, shown
from loratune.report.headline import Comparison, Measured, measures, sentence

COUNTED = {"rows": "rows", "inputs_cut": "input cut", "responses_cut": "response cut", "dropped": "dropped"}


def comparison_markdown(comparison: Comparison) -> str:
    return "\n\n".join(blocks(comparison)) + "\n"


def blocks(comparison: Comparison) -> Iterator[str]:
    evaluation = comparison.evaluation
    yield f"# {escaped(comparison.title)}"
    yield escaped(sentence(comparison))
    for name, part in parts_of(evaluation).items() if evaluation else ():
        yield f"## {escaped(name)}: {part.rows:,} rows, {part.answered_rows:,} answered"
        yield table(("", "base", "tuned", "change", "95 % interval"), map(table_row, measures(part)))
        yield f"{part.improved:,} improved, {part.tied:,} tied, {part.regressed:,} regressed."
    yield "## Prompts"
    for place, row in enumerate(comparison.rows, 1):
        yield from card_blocks(place, prompt_card(place, row))
    if answered := [example for example in shown(evaluation) if example.tuned.answer is not None] if evaluation else []:
        yield "## Held-out examples"
        for place, example in enumerate(answered, 1):
            yield from card_blocks(place, example_card(place, example, evaluation))
    yield "## How this was made"
    yield table(("", ""), (comparison.settings | comparison.versions).items())
    for data, sources in comparison.counts.items():
        yield counts_table(data, sources)
    if comparison.commands:
        yield fenced("\n".join(comparison.commands))


def table_row(line: Measured) -> Sequence[str]:
    return line.name, line.base, line.tuned, line.change, line.interval


def counts_table(data: str, sources: Mapping[str, Mapping[str, int]]) -> str:
    rows = ([source, *(f"{count[what]:,}" if what in count else "" for what in COUNTED)] for source, count in sources.items())
    return table((data, *COUNTED.values()), rows)


def card_blocks(place: int, card: Card) -> Iterator[str]:
    change = f" ({card.state}: {card.change}; {escaped(card.source)})" if card.change else ""
    yield f"**{place}.**{change}"
    yield fenced(card.prompt)
    for answer in card.answers:
        result = f" = {escaped(answer.result)}" if answer.result else ""
        yield f"{answer.side}: {escaped(answer.facts)}{result}"
        yield fenced("".join(piece.text for piece in answer.pieces))
    if card.wanted:
        yield "wanted:"
        yield fenced(card.wanted)


def table(head: Sequence[str], rows) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell if cell == '---' else escaped(cell) for cell in line)} |" for line in lines)


def fenced(text: str) -> str:
    """In a fence that is longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def escaped(text: str) -> str:
    """One line in which every character stands for itself."""
    return re.sub(r"([\\`*_\[\]<>|#@&~$!])", r"\\\1", " ".join(text.split()))
