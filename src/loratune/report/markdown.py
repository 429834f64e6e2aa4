"""The comparison in Markdown, for an issue or a note: the page's numbers and the answers.

Texts from models and files stand in fenced blocks, in which nothing is markup; names in tables are escaped.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from loratune.report.answers import Card, example_cards, prompt_card
from loratune.report.summary import Comparison, Section, sections, sentence

COUNTED = {"rows": "rows", "inputs_cut": "input cut", "responses_cut": "response cut", "dropped": "dropped"}


def comparison_markdown(comparison: Comparison) -> str:
    return "\n\n".join(blocks(comparison)) + "\n"


def blocks(comparison: Comparison) -> Iterator[str]:
    evaluation = comparison.evaluation
    yield f"# {escaped(comparison.title)}"
    yield escaped(sentence(comparison))
    for section in sections(evaluation) if evaluation else ():
        yield f"## {escaped(section.heading)}"
        yield numbers_table(section)
    yield "## Prompts"
    for place, row in enumerate(comparison.rows, 1):
        yield from card_blocks(place, prompt_card(place, row))
    if answered := [card for card in example_cards(evaluation) if card.answers] if evaluation else []:
        yield "## Held-out examples"
        for place, card in enumerate(answered, 1):
            yield from card_blocks(place, card)
    yield "## How this was made"
    yield table(("", ""), (comparison.settings | comparison.versions).items())
    for data, sources in comparison.counts.items():
        yield counts_table(data, sources)
    if comparison.commands:
        yield fenced("\n".join(comparison.commands))


def numbers_table(section: Section) -> str:
    head = ["", "base, bare prompt", "base", "tuned", "change", "95 % interval"]
    rows = [line[:6] for line in section.lines]
    shown = [place for place, name in enumerate(head) if place != 1 or any(row[1] for row in rows)]
    return table([head[place] for place in shown], ([row[place] for place in shown] for row in rows))


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
        yield f"wanted{f' (= {escaped(card.wanted_result)})' if card.wanted_result else ''}:"
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
