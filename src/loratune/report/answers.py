"""Format prompts and evaluated examples with both answers, for every form of the report."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from loratune.evaluation.metrics import METRICS
from loratune.evaluation.result import EvaluatedExample, Evaluation, ModelExample
from loratune.report.diff import Piece, find_differences
from loratune.report.summary import format_count, format_number, format_percent, typeset

MAX_EXAMPLES = 100
MAX_CHARACTERS = 2500  # of one text of an example: with both limits a page stays below 2 MB
MAX_NAME_CHARACTERS = 60


class CardAnswer(NamedTuple):
    side: str  # base | tuned
    pieces: Sequence[Piece]
    result: str  # blank where the answer is no program
    facts: str


class Card(NamedTuple):
    """One prompt or one evaluated example with both answers."""

    anchor: str
    prompt: str
    answers: Sequence[CardAnswer]
    source: str = "prompts"
    category: str = ""
    state: str = ""  # improved | tied | regressed; blank where no answer is wanted
    change: str = ""
    kind: str = ""  # such as largest gain
    input: str = ""
    wanted: str = ""
    wanted_result: str = ""


def select_examples(evaluation: Evaluation) -> list[tuple[EvaluatedExample, str]]:
    """Select as many examples as a page takes, each with its kind, such as "largest gain"; most have none.

    The notable ones come first, then the others with answers.
    """
    kinds = {id_: kind.replace("_", " ") for kind, ids in evaluation.telling.items() for id_ in ids}
    pairs = [(example, kinds.get(example.id, "")) for example in evaluation.examples]
    return sorted(pairs, key=lambda pair: (not pair[1], pair[0].tuned.answer is None))[:MAX_EXAMPLES]


def build_prompt_card(place: int, row: Mapping) -> Card:
    base, tuned = find_differences(row["regular"], row["fine_tuned"])
    answers = [
        CardAnswer(
            name,
            pieces,
            format_number(row[f"{side}_result"]) if f"{side}_result" in row else "",
            format_answer_details(
                row[f"{side}_tokens"],
                row[f"{side}_ended"],
                [f"{format_percent(row[f'{side}_rep_4'])} repeated"],
            ),
        )
        for name, side, pieces in (("base", "regular", base), ("tuned", "fine_tuned", tuned))
    ]
    return Card(f"p{place}", row["prompt"], answers)


def build_example_cards(evaluation: Evaluation) -> list[Card]:
    numbered = enumerate(select_examples(evaluation), 1)
    return [
        build_example_card(place, example, kind, evaluation.tie_threshold)
        for place, (example, kind) in numbered
    ]


def build_example_card(place: int, example: EvaluatedExample, kind: str, tie: float) -> Card:
    pieces = find_differences(shorten(example.base.answer or ""), shorten(example.tuned.answer or ""))
    sides = (("base", example.base), ("tuned", example.tuned))
    return Card(
        f"e{place}",
        shorten(example.instruction),
        [
            build_card_answer(name, side, cut)
            for (name, side), cut in zip(sides, pieces, strict=True)
            if side.answer is not None
        ],
        source=shorten(example.source, MAX_NAME_CHARACTERS) or "no source",
        category=shorten(example.category or "", MAX_NAME_CHARACTERS),
        state=classify_change(example.change, tie),
        change="" if example.change is None else typeset(f"{example.change:+,.2f} nats a token"),
        kind=shorten(kind, MAX_NAME_CHARACTERS),
        input=shorten(example.input or ""),
        wanted=shorten(example.wanted),
        wanted_result=format_result(example.wanted_result),
    )


def build_card_answer(name: str, side: ModelExample, cut: Sequence[Piece]) -> CardAnswer:
    scores = [f"ROUGE-L {format_percent(side.scores['rouge_l'])}"] if "rouge_l" in side.scores else []
    scores += [
        metric.labels[side.scores[name] == 1]
        for name, metric in METRICS.items()
        if metric.labels and name in side.scores
    ]
    return CardAnswer(
        name,
        cut,
        format_result(side.result),
        format_answer_details(side.tokens, side.ended, scores),
    )


def format_result(value: float | str | None) -> str:
    return "" if value is None else shorten(format_number(value), MAX_NAME_CHARACTERS)


def format_answer_details(tokens: int | None, ended: str | None, others: Sequence[str]) -> str:
    endings = {"eos": "stopped at EOS", "length": "cut at the limit"}
    known = [format_count(tokens, "token")] if tokens is not None else []
    known += [endings[ended]] if ended in endings else []
    return " · ".join([*known, *others])


def classify_change(change: float | None, tie: float) -> str:
    if change is None:
        return ""
    return "tied" if abs(change) <= tie else "improved" if change < 0 else "regressed"


def shorten(text: str, most: int = MAX_CHARACTERS) -> str:
    left = len(text) - most
    return text if left <= 0 else f"{text[:most]} … ({format_count(left, 'more character')})"
