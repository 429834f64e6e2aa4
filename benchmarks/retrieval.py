"""How many gold facts of FinQA's held-out questions the ranker finds, against BM25 and BM25 with a bonus for
rows.

    .venv/bin/python benchmarks/retrieval.py --split dev

Every way ranks the same facts of the shipped snapshot; tokens are those of --model, a line feed counted with
each fact.
"""

import argparse
import re
from collections.abc import Callable, Sequence

import bm25s
import numpy as np

from loratune.data import snapshot
from loratune.models.resolve import resolve_model
from loratune.models.tokenizer import Tokenizer
from loratune.tasks.finqa.facts import build_page_facts, select_best_facts
from loratune.tasks.finqa.ranker import STOP_WORDS, list_rankable, rank_facts

BUDGETS = (320, 200, 128)
FIRST = (3, 5)
ROW_BONUS = 1.5  # the best on dev, of what was tried


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    parser.add_argument("--model", default="smollm2-135m", help="whose tokens are counted")
    options = parser.parse_args()
    tokenizer = Tokenizer.load(resolve_model(options.model).folder)
    rows = [row for row in snapshot.read(f"finqa_{options.split}") if row["gold_inds"]]
    pages = [build_page_facts(row["pre_text"], row["post_text"], row["table"]) for row in rows]
    texts = sorted({text for facts in pages for text in facts.values()})
    lengths = {text: len(ids) + 1 for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True)}
    ways: dict[str, Callable[[str, dict[str, str]], list[str]]] = {
        "BM25": lambda question, facts: bm25_rank(question, facts, 0),
        "BM25, rows + 1.5": lambda question, facts: bm25_rank(question, facts, ROW_BONUS),
        "ranker": rank_facts,
    }
    print(f"{options.split}: {len(rows)} questions, {sum(len(row['gold_inds']) for row in rows)} gold facts")
    print(
        "| % | "
        + " | ".join([f"all within {budget}" for budget in BUDGETS] + [f"recall@{first}" for first in FIRST])
        + " |"
    )
    print("|---|" + "---|" * (len(BUDGETS) + len(FIRST)))
    for title, way in ways.items():
        ranked = [way(row["question"], facts) for row, facts in zip(rows, pages, strict=True)]
        shares = measure([row["gold_inds"] for row in rows], ranked, pages, lengths)
        print(f"| {title} | " + " | ".join(f"{100 * share:.1f}" for share in shares) + " |", flush=True)


def bm25_rank(question: str, facts: dict[str, str], row_bonus: float) -> list[str]:
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
    """Words and numbers in lower case, without stop words and plural endings."""
    found = re.findall(r"[a-z0-9]+(?:\.[0-9]+)?", text.lower())
    return [re.sub(r"(?<=[a-z]{3})(?<!s)s$", "", word) for word in found if word not in STOP_WORDS] or found


def measure(
    golds: Sequence[Sequence[str]],
    ranked: Sequence[list[str]],
    pages: Sequence[dict[str, str]],
    lengths: dict[str, int],
) -> list[float]:
    """The share of questions with all gold facts within each budget, then that of gold facts among the first
    few.
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


if __name__ == "__main__":
    main()
