"""Convert FinQA's questions to records: a page's best facts are the input, program or answer the output."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from loratune.data.example import Record
from loratune.data.split import HELD_OUT
from loratune.tasks.finqa.facts import (
    build_page_facts,
    format_facts,
    match_facts,
    put_first,
    select_best_facts,
)
from loratune.tasks.finqa.questions import Question
from loratune.tasks.finqa.ranker import rank_facts

RECALL_AT = 3  # as in the FinQA paper's recall of its retriever
ANSWER_REQUESTS = {"program": "Answer with a program.", "answer": "Answer with the result."}


@dataclass(frozen=True)
class FinqaOptions:
    """How questions become records.

    Args:
        target: the kind of response, program or answer.
        fact_tokens: the most tokens of a page's facts that a row shows.
        count_tokens: returns the number of tokens of each text.
    """

    target: str
    fact_tokens: int
    count_tokens: Callable[[Sequence[str]], list[int]]


def build_finqa_records(questions: Sequence[Question], split: str, options: FinqaOptions) -> Iterator[Record]:
    """Build the records of one split; those of val and test have only retrieved facts.

    A held-out question without a known program has its result as output, and `no_target` in its `meta`.
    """
    pages = {
        question.page: build_page_facts(question.pre_text, question.post_text, question.table)
        for question in questions
    }
    # One call for all texts of a split, because tokenising many together uses all cores.
    texts = list(dict.fromkeys(chain.from_iterable(facts.values() for facts in pages.values())))
    # One token more, for the line feed.
    lengths = {text: count + 1 for text, count in zip(texts, options.count_tokens(texts), strict=True)}
    for question in questions:
        yield build_finqa_record(question, split, pages[question.page], lengths=lengths, options=options)


def get_target(question: Question, target: str) -> str:
    return question.program if target == "program" else question.answer or format_recorded_result(question)


def format_recorded_result(question: Question) -> str:
    return "" if question.exe_ans is None else str(question.exe_ans)


def is_scored(question: Question) -> bool:
    """Tell whether answers can be scored: execution accuracy needs the result, but no program."""
    return question.exe_ans is not None


def build_finqa_record(
    question: Question, split: str, facts: dict[str, str], *, lengths: dict[str, int], options: FinqaOptions
) -> Record:
    """Build a record: training rows have their gold facts, held-out rows retrieved ones, as in use.

    The `meta` of held-out rows has all that scoring needs.
    """
    ranked = rank_facts(question.text, facts)
    origin = "retrieved"
    if split == "train" and question.gold:
        origin, ranked = "gold", put_first([name for name in question.gold if name in facts], ranked)
    elif split == "train" and question.program:
        origin, ranked = (
            "matched",
            put_first(match_facts(question.program, facts).intersection(ranked), ranked),
        )
    selected = select_best_facts(
        ranked, {name: lengths[text] for name, text in facts.items()}, options.fact_tokens
    )
    meta: dict[str, Any] = {"facts": origin, "page": question.page}
    if question.program_found:
        meta["program_found"] = True
    if split in HELD_OUT:
        meta |= {
            "question": question.text,
            "program": question.program or None,
            "answer": question.answer or None,
            "exe_ans": question.exe_ans,
            "first_facts": ranked[:RECALL_AT],
            "kept_facts": [name for name in facts if name in selected],
            "gold_facts": {name: text for name, text in facts.items() if name in question.gold}
            if question.gold
            else None,
            "table": question.table,
        }
    target = get_target(question, options.target)
    if split in HELD_OUT and not target:
        meta["no_target"] = True
        target = format_recorded_result(question)
    return Record(
        f"{question.text}\n{ANSWER_REQUESTS[options.target]}",
        format_facts(facts, selected),
        target,
        id=question.id,
        source="finqa",
        group=question.page,
        meta=meta,
    )
