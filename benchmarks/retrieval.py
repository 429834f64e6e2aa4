"""How many gold facts of FinQA's held-out questions the ranker finds, against BM25 and BM25 with a bonus for
rows.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.retrieval --split dev

Every way ranks the same facts of the shipped snapshot; tokens are those of --model, a line feed counted with
each fact.
"""

import argparse
import re
from argparse import Namespace
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.record import Column, Row, add_record_option, parse_options, show_and_record
from loratune.data import snapshot
from loratune.models.resolve import resolve_model
from loratune.models.tokenizer import Tokenizer
from loratune.tasks.finqa.facts import build_page_facts, select_best_facts
from loratune.tasks.finqa.ranker import STOP_WORDS, list_rankable, rank_facts

BUDGETS = (320, 200, 128)
FIRST = (3, 5)
ROW_BONUS = 1.5  # the best on dev, of what was tried


COLUMNS = [
    *(
        Column(key=f"within_{budget}", title=f"all within {budget} tokens", unit=" %", decimals=1)
        for budget in BUDGETS
    ),
    *(Column(key=f"recall_{first}", title=f"recall@{first}", unit=" %", decimals=1) for first in FIRST),
]


def main(options: Namespace) -> None:
    tokenizer = Tokenizer.load(resolve_model(options.model).folder)
    rows = [row for row in snapshot.read(f"finqa_{options.split}") if row["gold_inds"]]
    pages = [build_page_facts(row["pre_text"], row["post_text"], row["table"]) for row in rows]
    texts = sorted({text for facts in pages for text in facts.values()})
    lengths = {text: len(ids) + 1 for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True)}
    golds = [row["gold_inds"] for row in rows]
    ways: dict[str, Callable[[str, dict[str, str]], list[str]]] = {
        "BM25": lambda question, facts: bm25_rank(question, facts, 0),
        f"BM25, a row + {ROW_BONUS}": lambda question, facts: bm25_rank(question, facts, ROW_BONUS),
        "the ranker": rank_facts,
    }
    table = []
    for title, way in ways.items():
        ranked = [way(row["question"], facts) for row, facts in zip(rows, pages, strict=True)]
        shares = measure(golds, ranked, pages, lengths)
        values = {column.key: round(100 * share, 2) for column, share in zip(COLUMNS, shares, strict=True)}
        table.append(Row(name=title, values=values))
    show_and_record(
        options,
        title=f"FinQA's gold facts found: {options.split}",
        what=f"{len(rows)} questions of {options.split} with {sum(map(len, golds)):,} known gold facts, "
        f"tokens of {options.model}. Within N tokens: questions all of whose gold facts are among the best "
        "that fit. Recall: gold facts among the first 3 or 5.",
        columns=COLUMNS,
        rows=table,
    )


def bm25_rank(question: str, facts: dict[str, str], row_bonus: float) -> list[str]:
    import bm25s

    names = list_rankable(facts)
    if not names:
        return []
    index = bm25s.BM25()
    index.index([words(facts[name]) for name in names], show_progress=False)
    scores = index.get_scores(words(question)) + row_bonus * np.array(
        [name.startswith("table") for name in names]
    )
    return [names[number] for number in np.argsort(-scores, kind="stable")]


def words(text: str) -> list[str]:
    """Return words and numbers in lower case, without stop words and plural endings."""
    found = re.findall(r"[a-z0-9]+(?:\.[0-9]+)?", text.lower())
    return [re.sub(r"(?<=[a-z]{3})(?<!s)s$", "", word) for word in found if word not in STOP_WORDS] or found


def measure(
    golds: Sequence[Sequence[str]],
    ranked: Sequence[list[str]],
    pages: Sequence[dict[str, str]],
    lengths: dict[str, int],
) -> list[float]:
    """Return the share of questions with all gold facts within each budget, then that of gold facts among the
    first few.
    """
    shares = []
    for budget in BUDGETS:
        kept = [
            select_best_facts(names, {name: lengths[text] for name, text in facts.items()}, budget)
            for names, facts in zip(ranked, pages, strict=True)
        ]
        shares.append(np.mean([found.issuperset(gold) for found, gold in zip(kept, golds, strict=True)]))
    for first in FIRST:
        found = sum(len(set(gold) & set(names[:first])) for gold, names in zip(golds, ranked, strict=True))
        shares.append(found / sum(map(len, golds)))
    return shares


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    parser.add_argument("--model", default="smollm2-135m", help="whose tokens are counted")
    add_record_option(parser)
    return parser


if __name__ == "__main__":
    main(parse_options(build_parser()))
