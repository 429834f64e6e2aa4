"""Rank the facts of a FinQA page for a question, by a very small network over features of both.

Its weights, ranker.json, are fitted to FinQA's training questions by tools/ranker.py; docs/retrieval.md
measures the ranking.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from importlib.resources import files
from itertools import pairwise

import numpy as np

from loratune.data.words import split_words
from loratune.tasks.finqa.facts import get_row_name

# A fact with fewer words has no content to rank.
MIN_WORDS = 3
STOP_WORDS = frozenset(
    split_words(
        "a an the of in on at to for from by with and or is are was were be been do does did what how much "
        "many as that this "
        "which it its if not has have had"
    )
)
SUFFIX = re.compile(r"(?<=[a-z]{3})(?:(?<!s)s|(?<=[a-z])(?:ations?|ments?|ings?|ions?|ies|es|ed|al|ly|e|y))$")
YEAR = re.compile(r"(?:19|20)\d\d(?!\d)")
NUMBER = re.compile(r"\d+(?:\.\d+)?")
POINTS_ELSEWHERE = re.compile(r"following table|table (?:below|above)|as follows")
# What a question asks for determines how many rows it needs, and which ones.
QUESTION_PATTERNS = {
    "asks a share": re.compile(
        r"\b(?:percent(?:age)?|portion|fraction|ratio|proportion|share) (?:of|is|was|did|does)\b"
    ),
    "asks a change": re.compile(
        r"\b(?:chang|increas|decreas|growth|grow|grew|declin|differ|return|rise|fell)"
    ),
    "asks a total": re.compile(r"\b(?:total|sum|combined|cumulative|all)\b"),
    "asks an average": re.compile(r"\b(?:average|mean)\b"),
    "asks an extreme": re.compile(r"\b(?:highest|lowest|maximum|minimum|largest|range)\b"),
    "assumes": re.compile(r"\b(?:if|assuming|consider|considering|would|expected)\b"),
}


def rank_facts(question: str, facts: dict[str, str]) -> list[str]:
    """Return the ids of the facts, the best for the question first, without facts that have no content."""
    names = list_rankable(facts)
    if not names:
        return []
    order = np.argsort(
        -compute_scores(compute_features(question, facts, names), load_weights()), kind="stable"
    )
    return [names[number] for number in order]


def list_rankable(facts: dict[str, str]) -> list[str]:
    # Row 0 is the header, which every other row repeats.
    return [name for name, text in facts.items() if name != "table_0" and len(stem_words(text)) >= MIN_WORDS]


def compute_scores(values: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """Compute scores, [facts], from features, [facts, features]; only differences within a page matter."""
    return np.tanh(values @ weights["hidden"] + weights["bias"]) @ weights["out"]


@cache
def load_weights() -> dict[str, np.ndarray]:
    """Load the weights: hidden [features, units], bias [units], out [units]."""
    stored = json.loads(files("loratune.tasks.finqa").joinpath("ranker.json").read_text())
    hidden = np.array(list(stored["hidden"].values()))
    return {"hidden": hidden, "bias": np.array(stored["bias"]), "out": np.array(stored["out"])}


def compute_features(question: str, facts: dict[str, str], names: list[str]) -> np.ndarray:
    """Compute features, [facts of `names`, features], in the order of `compute_feature_columns`."""
    return np.column_stack(list(compute_feature_columns(question, facts, names).values()))


def compute_feature_columns(question: str, facts: dict[str, str], names: list[str]) -> dict[str, np.ndarray]:
    """Map each feature to its values for the facts of `names`, all within about -1 to 5."""
    question_words, texts = stem_words(question), [facts[name] for name in names]
    fact_words = [stem_words(text) for text in texts]
    table = np.array([name.startswith("table") for name in names], dtype=float)
    row_names = [stem_words(get_row_name(facts[name])) if name.startswith("table") else () for name in names]
    header_words, header_years = (
        set(stem_words(facts.get("table_0", ""))),
        set(YEAR.findall(facts.get("table_0", ""))),
    )
    years, numbers = set(YEAR.findall(question)), set(NUMBER.findall(question))
    fact_numbers = [
        {number for number in NUMBER.findall(text) if not YEAR.fullmatch(number)} for text in texts
    ]
    ones = np.ones(len(names))

    bm25, covered, missing = compute_word_overlap(question_words, fact_words)
    row_match = np.array([share(set(row), question_words) for row in row_names])
    return {
        # words that question and fact share
        "BM25, of the page's best": bm25 / (bm25.max() or 1),
        "BM25": bm25 / 10,
        "BM25 rank": reciprocal_rank(bm25),
        "BM25 rank in its kind": np.where(
            table, reciprocal_rank(bm25, table == 1), reciprocal_rank(bm25, table == 0)
        ),
        "question covered": covered,
        "question covered, beyond the best fact": missing,
        "question covered by the fact before": np.append(0, covered[:-1]),
        "question covered by the fact after": np.append(covered[1:], 0),
        "best sentence's cover": ones * max(covered * (1 - table)),
        "pairs of words": np.array(
            [share(set(pairwise(question_words)), pairwise(words)) for words in fact_words]
        ),
        # years and numbers
        "asked years in the fact": np.array([share(years, YEAR.findall(text)) for text in texts]),
        "asked years in the table's header": table * share(years, header_years),
        "years asked": ones * min(len(years), 3),
        "holds a number of the question": np.array(
            [float(bool((numbers - years) & others)) for others in fact_numbers]
        ),
        "numbers": np.log1p([len(NUMBER.findall(text)) for text in texts]),
        "distinct numbers": np.log1p([len(others) for others in fact_numbers]),
        "has $": np.array([float("$" in text) for text in texts]),
        "has %": np.array([float("%" in text) for text in texts]),
        # the table
        "is a row": table,
        "row's name in the question": row_match,
        "row's name is the best": (row_match == row_match.max()) * table,
        "table's best name": ones * row_match.max(),
        "pairs of words with the row's name": np.minimum(
            [len(set(pairwise(question_words)) & set(pairwise(row))) for row in row_names], 3
        ),
        "words of the row's name": np.log1p([len(row) for row in row_names]),
        "row's name has a year": np.array([float(any(map(YEAR.search, row))) for row in row_names]),
        "row's name has an asked year": np.array([float(bool(years & set(row))) for row in row_names]),
        "row is a total": np.array([float("total" in row) for row in row_names]),
        "question covered by the header": table * share(set(question_words), header_words),
        "rows": ones * np.log1p(table.sum()),
        # the fact itself
        "words": np.log([len(words) for words in fact_words]),
        "place on the page": np.linspace(0, 1, len(names)),
        "speaks of a table or list": np.array(
            [float(bool(POINTS_ELSEWHERE.search(text.lower()))) for text in texts]
        ),
        # the question: equal for all facts, so that the hidden layer can weigh other features by it
        **{
            title: ones * bool(pattern.search(question.lower()))
            for title, pattern in QUESTION_PATTERNS.items()
        },
    }


def compute_word_overlap(
    question_words: Sequence[str], fact_words: Sequence[Sequence[str]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compare the words of a question with those of each fact.

    Returns:
        For each fact its BM25 (k1 1.5, b 0.75); the share of the question's words that it has, weighted by
        their rareness on the page; and that share of the words that the fact with the best BM25 lacks.
    """
    counted = [Counter(words) for words in fact_words]
    counts = np.array(
        [[count[word] for word in dict.fromkeys(question_words)] for count in counted], dtype=float
    )
    lengths = np.array([len(words) for words in fact_words])[:, None]
    is_present = counts > 0
    rareness = np.log(1 + (len(counts) - is_present.sum(0) + 0.5) / (is_present.sum(0) + 0.5))
    bm25 = (rareness * counts * 2.5 / (counts + 1.5 * (0.25 + 0.75 * lengths / lengths.mean()))).sum(1)
    on_page = rareness * is_present.any(0)
    lacking = on_page * ~is_present[bm25.argmax()]
    return bm25, is_present @ on_page / (on_page.sum() or 1), is_present @ lacking / (on_page.sum() or 1)


def reciprocal_rank(values: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
    """Compute 1 / rank among all values, or among those of `among`."""
    others = values if among is None else values[among]
    return 1 / (1 + (others[None, :] > values[:, None]).sum(1))


def share(items: set, others: Iterable) -> float:
    """Compute the share of `items` that are among `others`; 0 without items."""
    return len(items.intersection(others)) / (len(items) or 1)


@lru_cache(4096)  # each question of a page needs the same facts
def stem_words(text: str) -> tuple[str, ...]:
    """Return words without common suffixes, and numbers, in lower case and without stop words."""
    return tuple(SUFFIX.sub("", word) for word in split_words(text, decimals=True) if word not in STOP_WORDS)
