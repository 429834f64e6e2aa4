"""FinQA: questions about pages of annual reports, answered by a small program over the page's facts (Chen et
al., 2021; MIT).
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from loratune.data import snapshot
from loratune.data.dedup import normalize_text
from loratune.data.example import Record
from loratune.data.jsonl import describe_type, has_lone_surrogate, read_text_field
from loratune.data.sources.files import convert_rows
from loratune.data.sources.hub import download_dataset_files
from loratune.data.sources.loaded import SourceData
from loratune.data.sources.parts import detect_split
from loratune.data.sources.readers import FileRow, read_rows
from loratune.data.split import HELD_OUT
from loratune.errors import UserError
from loratune.system.messages import track
from loratune.system.read import parse_json
from loratune.tasks.finqa.facts import (
    build_page_facts,
    format_facts,
    match_facts,
    put_first,
    select_best_facts,
)
from loratune.tasks.finqa.ranker import rank_facts

REPOSITORY = "PTPReasoning/finqa"
FILES = {"train": "train.json", "val": "dev.json", "test": "test.json"}
MAX_RESULT = 1e300  # result of a program
RECALL_AT = 3  # as in the FinQA paper's recall of its retriever
ANSWER_REQUESTS = {"program": "Answer with a program.", "answer": "Answer with the result."}


@dataclass(frozen=True)
class Question:
    id: str
    page: str
    text: str
    pre_text: list[str]
    post_text: list[str]
    table: list[list[str]]
    answer: str
    exe_ans: float | str | None  # what the program gives: a number, yes or no
    program: str
    gold: list[str] | None  # ids of the facts that the answer needs; None where nobody said
    found: bool = False  # whether the program is one that was only found to give the result


@dataclass(frozen=True)
class FinqaOptions:
    target: str  # program or answer
    fact_tokens: int
    count_tokens: Callable[[Sequence[str]], list[int]]  # tokens of each text


def load_finqa(source: str | Path, options: FinqaOptions) -> list[SourceData]:
    """The official parts as train, val and test; `place` is "hub", "snapshot" or a folder with FinQA's own
    three files.
    """
    origin, parts = read_questions(source)
    held_out = {normalize_text(question.text) for split in HELD_OUT for question in parts[split]}
    return [
        build_source_data(split, questions, held_out if split == "train" else set(), origin, options)
        for split, questions in parts.items()
    ]


def read_questions(source: str | Path) -> tuple[str, dict[str, list[Question]]]:
    """Where they come from, in words, and all questions of each part."""
    origin, rows = read_parts(source)
    return origin, {split: convert_rows(part, parse_question) for split, part in rows.items()}


def read_parts(source: str | Path) -> tuple[str, dict[str, list[FileRow]]]:
    if source == "snapshot":
        names = {split: f"finqa_{Path(file).stem}" for split, file in FILES.items()}
        rows = {
            split: [
                FileRow(f"{name}, row {number}", row) for number, row in enumerate(snapshot.read(name), 1)
            ]
            for split, name in names.items()
        }
        return "the shipped snapshot", rows
    if source == "hub":
        files = download_dataset_files(REPOSITORY)
        rows = {
            split: [row for file in files if detect_split(file.name) == split for row in read_rows(file)]
            for split in FILES
        }
        if missing := [split for split, found in rows.items() if not found]:
            raise UserError(
                f"data set {REPOSITORY}: no file for {', '.join(missing)}; take the shipped copy with "
                "--source snapshot"
            )
        return f"{REPOSITORY} on the Hugging Face hub", rows
    return f"the folder {source}", {split: read_rows(Path(source) / file) for split, file in FILES.items()}


def read_test_prose() -> list[str]:
    """The sentences of each page that FinQA's shipped test questions are about, without tables and
    questions.
    """
    rows = snapshot.read("finqa_test")
    return list(
        {
            row["id"].rpartition("-")[0]: " ".join([*row["pre_text"], *row["post_text"]]) for row in rows
        }.values()
    )


def parse_question(values: dict[str, Any]) -> Question:
    """From FinQA's own form (a `qa` object) or the flattened one. Raises ValueError that names the field."""
    asked = values.get("qa", values)
    if not isinstance(asked, dict):
        raise ValueError(f"qa must be an object, not {describe_type(asked)}")
    id = read_text_field(values, "id")
    table = read_list_field(values, "table")
    if not all(isinstance(row, list) and all(isinstance(cell, str) for cell in row) for row in table):
        raise ValueError("table must be a list of rows, each a list of texts")
    refuse_lone_surrogates("table", chain.from_iterable(table))
    answers = (read_text_field(asked, name, required=False).strip() for name in ("answer", "final_result"))
    program = (
        read_text_field(asked, "program", required=False)
        or read_text_field(asked, "program_solution", required=False)
    ).strip()
    found = read_text_field(
        asked, "found_program", required=False
    )  # of the shipped training data, see tools/programs.py
    return Question(
        id=id,
        page=id.rpartition("-")[0] or id,
        text=read_text_field(asked, "question").strip(),
        pre_text=read_sentences(values, "pre_text"),
        post_text=read_sentences(values, "post_text"),
        table=table,
        answer=next(filter(None, answers), ""),
        exe_ans=read_result(asked),
        program=program or found,
        gold=read_gold_facts(asked),
        found=bool(found and not program),
    )


def read_result(asked: dict[str, Any]) -> float | str | None:
    """`exe_ans`, the program's result. Tables made with pandas have NaN where there is none."""
    value = asked.get("exe_ans")
    if isinstance(value, str):
        return read_text_field(asked, "exe_ans", required=False)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | None)
        or (value is not None and abs(value) > MAX_RESULT)
    ):
        raise ValueError(
            "exe_ans must be a number or text, not "
            f"{value if isinstance(value, float) else describe_type(value)}"
        )
    return None if value != value else value


def read_gold_facts(asked: dict[str, Any]) -> list[str] | None:
    """Ids of the facts that the answer needs. FinQA has an object from id to text; an empty one says as
    little as none.
    """
    gold = parse_if_json(asked.get("gold_inds"))
    if isinstance(gold, dict):
        gold = [
            name for name, text in gold.items() if text is not None
        ]  # Parquet gives each row the ids of all others, too
    if gold is not None and not (isinstance(gold, list) and all(isinstance(name, str) for name in gold)):
        raise ValueError(
            f"gold_inds must be an object or a list of the facts' ids, not {describe_type(gold)}"
        )
    refuse_lone_surrogates("gold_inds", gold or [])
    return gold or None


def read_list_field(values: dict[str, Any], name: str) -> list:
    """A list, also where a flattened copy holds it as JSON text."""
    if name not in values:
        raise ValueError(f"{name} is missing (there are: {', '.join(values)})")
    value = parse_if_json(values[name])
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list, not {describe_type(value)}")
    return value


def parse_if_json(value: Any) -> Any:
    """What a text is as JSON: a flattened copy may hold a list or an object so. The text, if it is none."""
    try:
        return parse_json(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def read_sentences(values: dict[str, Any], name: str) -> list[str]:
    sentences = read_list_field(values, name)
    if not all(isinstance(sentence, str) for sentence in sentences):
        raise ValueError(f"{name} must be a list of sentences")
    refuse_lone_surrogates(name, sentences)
    return sentences


def refuse_lone_surrogates(name: str, texts: Iterable[str]) -> None:
    if any(map(has_lone_surrogate, texts)):
        raise ValueError(f"{name} holds a broken character (a lone surrogate)")


def build_source_data(
    split: str, questions: list[Question], held_out: set[str], origin: str, options: FinqaOptions
) -> SourceData:
    """Without the questions in `held_out`: a few are asked word for word of pages in two parts."""
    fresh = [question for question in questions if normalize_text(question.text) not in held_out]
    usable = [
        question
        for question in fresh
        if get_target(question, options.target) or (split in HELD_OUT and is_scored(question))
    ]
    left_out = {
        "question also held out": len(questions) - len(fresh),
        f"no {options.target}": len(fresh) - len(usable),
    }
    if not usable:
        raise UserError(
            f"finqa ({origin}): no question for {split} has "
            f"{'a program' if options.target == 'program' else 'an answer'}; "
            "choose the other --finqa-target, or take the shipped copy with --source snapshot"
        )
    records = list(track(build_finqa_records(usable, split, options), f"FinQA {split}", len(usable)))
    if split in HELD_OUT:  # scores are over all ids of a part, also those that have no row
        records = [replace(record, meta=record.meta | {"split_ids": len(questions)}) for record in records]
    return SourceData(
        "finqa", origin, records, split, {reason: count for reason, count in left_out.items() if count}
    )


def build_finqa_records(questions: Sequence[Question], split: str, options: FinqaOptions) -> Iterator[Record]:
    """The rows of one part, as they are shown to a model; those of val and test see retrieved facts only.

    A held-out question whose program nobody knows has its result as output, and `no_target` in its `meta`.
    """
    pages = {
        question.page: build_page_facts(question.pre_text, question.post_text, question.table)
        for question in questions
    }
    # One call for all texts of a part: tokenising many at once uses all cores.
    texts = list(dict.fromkeys(chain.from_iterable(facts.values() for facts in pages.values())))
    # One more for the line feed.
    lengths = {text: count + 1 for text, count in zip(texts, options.count_tokens(texts), strict=True)}
    for question in questions:
        yield build_finqa_record(question, split, pages[question.page], lengths, options)


def get_target(question: Question, target: str) -> str:
    return question.program if target == "program" else question.answer or format_recorded_result(question)


def format_recorded_result(question: Question) -> str:
    return "" if question.exe_ans is None else str(question.exe_ans)


def is_scored(question: Question) -> bool:
    """Execution accuracy needs no program, only the result: such a held-out question is answered and
    scored.
    """
    return question.exe_ans is not None


def build_finqa_record(
    question: Question, split: str, facts: dict[str, str], lengths: dict[str, int], options: FinqaOptions
) -> Record:
    """Training rows see their gold facts; held-out rows only retrieved ones, as in use, and carry all that
    scoring them needs.
    """
    ranked = rank_facts(question.text, facts)
    how = "retrieved"
    if split == "train" and question.gold:
        how, ranked = "gold", put_first([name for name in question.gold if name in facts], ranked)
    elif split == "train" and question.program:
        how, ranked = "matched", put_first(match_facts(question.program, facts).intersection(ranked), ranked)
    kept = select_best_facts(
        ranked, {name: lengths[text] for name, text in facts.items()}, options.fact_tokens
    )
    meta: dict[str, Any] = {"facts": how, "page": question.page}
    if question.found:
        meta["program_found"] = True
    if split in HELD_OUT:
        meta |= {
            "question": question.text,
            "program": question.program or None,
            "answer": question.answer or None,
            "exe_ans": question.exe_ans,
            "first_facts": ranked[:RECALL_AT],
            "kept_facts": [name for name in facts if name in kept],
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
        format_facts(facts, kept),
        target,
        id=question.id,
        source="finqa",
        group=question.page,
        meta=meta,
    )


def replace_with_gold_facts(record: Record) -> Record | None:
    """A held-out row that shows its gold facts and nothing else of the page, as in the paper; None where they
    are unknown.
    """
    gold = record.meta.get("gold_facts")
    # Records of the user's may have a `meta` of another form.
    if not gold or not isinstance(gold, dict) or not all(isinstance(text, str) for text in gold.values()):
        return None
    return replace(
        record, input=format_facts(gold, gold), meta=record.meta | {"facts": "gold", "kept_facts": list(gold)}
    )


def compute_fact_recall(records: Sequence[Record]) -> dict[str, float | int] | None:
    """Over rows with known gold facts: the share of rows where all were kept, and of facts that were kept and
    that were among the three ranked first. None where none are known.
    """
    metas = [
        [record.meta.get(name) for name in ("gold_facts", "kept_facts", "first_facts")] for record in records
    ]
    # Records of the user's may have a `meta` of another form.
    forms = (dict, list, list)
    known = [meta for meta in metas if meta[0] and all(map(isinstance, meta, forms))]
    if not known:
        return None
    found = [sum(name in kept for name in gold) for gold, kept, _ in known]
    wanted = [len(gold) for gold, _, _ in known]
    return {
        "rows": len(known),
        "all_gold_facts": round(sum(map(operator.eq, found, wanted)) / len(known), 4),
        "gold_facts": round(sum(found) / sum(wanted), 4),
        f"recall_at_{RECALL_AT}": round(
            sum(name in first for gold, _, first in known for name in gold) / sum(wanted), 4
        ),
    }
