"""Prompts and evaluated examples with both answers, in the words that every form of the report shows."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from loratune.report.diff import Piece, differences
from loratune.report.schema import Evaluation, Example, Side
from loratune.report.summary import counted, number, percent, signed

MOST_EXAMPLES = 100
MOST_LETTERS = 2500  # of one text of an example: with both limits a page stays below 2 MB
MOST_LETTERS_OF_NAME = 60
SCORES = {"execution_accuracy": ("wrong result", "right result"), "program_accuracy": ("another program", "the wanted program")}


class Answer(NamedTuple):
    side: str  # base | tuned
    pieces: Sequence[Piece]
    result: str  # blank where the answer is no program
    facts: str


class Card(NamedTuple):
    """One prompt or one evaluated example with both answers."""

    anchor: str
    prompt: str
    answers: Sequence[Answer]
    source: str = "prompts"
    category: str = ""
    state: str = ""  # improved | tied | regressed; blank where no answer is wanted
    change: str = ""
    kind: str = ""  # such as largest gain
    input: str = ""
    wanted: str = ""
    wanted_result: str = ""


def shown(evaluation: Evaluation) -> list[tuple[Example, str]]:
    """As many as a page takes, each with what it is an instance of (such as the largest gain; blank for most).

    The telling ones come first, then the others with answers.
    """
    kinds = {id_: kind.replace("_", " ") for kind, ids in evaluation.telling.items() for id_ in ids}
    pairs = [(example, kinds.get(example.id, "")) for example in evaluation.examples]
    return sorted(pairs, key=lambda pair: (not pair[1], pair[0].tuned.answer is None))[:MOST_EXAMPLES]


def prompt_card(place: int, row: Mapping) -> Card:
    base, tuned = differences(row["regular"], row["fine_tuned"])
    answers = [
        Answer(
            name,
            pieces,
            number(row[f"{side}_result"]) if f"{side}_result" in row else "",
            facts(row[f"{side}_tokens"], row[f"{side}_ended"], [f"{percent(row[f'{side}_rep_4'])} repeated"]),
        )
        for name, side, pieces in (("base", "regular", base), ("tuned", "fine_tuned", tuned))
    ]
    return Card(f"p{place}", row["prompt"], answers)


def example_cards(evaluation: Evaluation) -> list[Card]:
    numbered = enumerate(shown(evaluation), 1)
    return [example_card(place, example, kind, evaluation.tie_threshold) for place, (example, kind) in numbered]


def example_card(place: int, example: Example, kind: str, tie: float) -> Card:
    pieces = differences(shortened(example.base.answer or ""), shortened(example.tuned.answer or ""))
    sides = (("base", example.base), ("tuned", example.tuned))
    return Card(
        f"e{place}",
        shortened(example.instruction),
        [example_answer(name, side, cut) for (name, side), cut in zip(sides, pieces, strict=True) if side.answer is not None],
        source=shortened(example.source, MOST_LETTERS_OF_NAME) or "no source",
        category=shortened(example.category or "", MOST_LETTERS_OF_NAME),
        state=state_of(example.change, tie),
        change="" if example.change is None else f"{signed(example.change, 2)} nats a token",
        kind=shortened(kind, MOST_LETTERS_OF_NAME),
        input=shortened(example.input or ""),
        wanted=shortened(example.wanted),
        wanted_result=result_of(example.wanted_result),
    )


def example_answer(name: str, side: Side, cut: Sequence[Piece]) -> Answer:
    scores = [f"ROUGE-L {percent(side.scores['rouge_l'])}"] if "rouge_l" in side.scores else []
    scores += [words[side.scores[score] == 1] for score, words in SCORES.items() if score in side.scores]
    return Answer(
        name,
        cut,
        result_of(side.result),
        facts(side.tokens, side.ended, scores),
    )


def result_of(value: float | str | None) -> str:
    return "" if value is None else shortened(number(value), MOST_LETTERS_OF_NAME)


def facts(tokens: int | None, ended: str | None, others: Sequence[str]) -> str:
    endings = {"eos": "ended by itself", "length": "cut at the limit"}
    known = [counted(tokens, "token")] if tokens is not None else []
    known += [endings[ended]] if ended in endings else []
    return " · ".join([*known, *others])


def state_of(change: float | None, tie: float) -> str:
    if change is None:
        return ""
    return "tied" if abs(change) <= tie else "improved" if change < 0 else "regressed"


def shortened(text: str, most: int = MOST_LETTERS) -> str:
    left = len(text) - most
    return text if left <= 0 else f"{text[:most]} … ({counted(left, 'more character')})"
