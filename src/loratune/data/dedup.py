"""Deduplication: remove duplicates, and find clusters of near-duplicates, by question or input.

Text that very many rows of a source share, such as a system message, a greeting, a preamble or a schema, does
not make rows near-duplicates: two texts must be similar both with it and without it. So ignoring shared text
only separates rows and never joins them.

The search is exact and deterministic, and does not compare all pairs: two sets with a Jaccard similarity of
at least t share a word among the first |set| - ceil(t |set|) + 1 words of each, when the words of all sets
are in one order, the rarest first (prefix filtering; Bayardo, Ma and Srikant, 2007).
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from loratune.data.compared_texts import (
    get_compared_texts,
    hash_content,
    list_questions,
    make_prompt_key,
    normalize_text,
    strip_answer_format,
)
from loratune.data.example import Record
from loratune.data.words import split_terms, split_words

# Chosen on Dolly: at 0.7 its largest group is 42 rows of one series of questions; at 0.6 unrelated questions
# such as "who is the best ..." are joined.
INSTRUCTION_SIMILARITY = 0.7
INPUT_SIMILARITY = 0.8
# An instruction with more inputs than this names a task ("Classify this review."): the question is in the
# input, and rows with that instruction may be in different splits. Dolly's most frequent one has 15 inputs.
TASK_INPUTS = 20
# A line or sentence is ignored as shared if it is in more prompts than MIN and than SHARE of the source's,
# and always in more than MAX. A passage is not shared, so its questions stay together: Dolly asks at most 12
# of one, SQuAD about 25. Dolly's most frequent sentence is in 228 prompts, 1.5 %: "Identify which instrument
# is string or percussion:".
SHARED_LIMIT_MIN, SHARED_LIMIT_SHARE, SHARED_LIMIT_MAX = 30, 0.02, 500
# A word is ignored as shared if it is in more than this share of the prompts. In Dolly, "about" is in 7 % of
# the instructions and "also" in 10 % of the inputs.
COMMON_WORD_SHARE = 0.2
PAIRS_PER_CHUNK = 2**18  # compared together, which limits the memory
# The ends of sentences in Chinese, Japanese and Hindi; no space needs to follow them.
WIDE_ENDS = "\u3002\uff01\uff1f\uff1a\uff1b\u0964"
SENTENCE_END = re.compile(rf"\n+|(?<=[.!?:;])\s+|(?<=[{WIDE_ENDS}])")
STOP_WORDS = frozenset(
    split_words(
        "a an the of in on at to for from by with and or is are was were be been being do does did can could "
        "would should will "
        "shall may might i me my we you your it its that this these those there which what who whom whose "
        "when where why how as "
        "if not no s t please give tell list some following text passage paragraph given"
    )
)


def remove_duplicates(
    records: Sequence[Record], keep_duplicates_in: Sequence[Sequence[Record]] = ()
) -> list[Record]:
    """Keep the first of all records with the same content up to case and white space.

    Args:
        records: the records.
        keep_duplicates_in: lists of some of these records, whose duplicates within one list are kept.

    Returns:
        The remaining records, with unique ids.
    """
    list_of = {id(record): number for number, some in enumerate(keep_duplicates_in) for record in some}
    first: dict[str, Record] = {}
    distinct = []
    for record in records:
        original = first.setdefault(hash_content(record), record)
        if original is record or (id(record) in list_of and list_of[id(record)] == list_of.get(id(original))):
            distinct.append(record)
    return make_ids_unique(distinct)


def make_ids_unique(records: Sequence[Record]) -> list[Record]:
    """Append #2, #3 and so on to ids that occur before."""
    renamed = []
    repeats: Counter[str] = Counter()
    used: set[str] = set()
    for record in records:
        unique = record.id
        while unique in used:
            repeats[record.id] += 1
            unique = f"{record.id}#{repeats[record.id] + 1}"
        used.add(unique)
        renamed.append(replace(record, id=unique))
    return renamed


def assign_groups(records: Sequence[Record]) -> list[Record]:
    """Set the records' `group`: near-duplicates, and records with the same group before, get the same one.

    A group is named after its content, so that it does not depend on the order of the records.
    """
    questions, inputs = extract_word_sets(records)
    edges = [
        link_similar(questions, INSTRUCTION_SIMILARITY),
        link_similar(inputs, INPUT_SIMILARITY),
        link_equal([make_prompt_key(record) for record in records]),
        link_openings(records),
        link_equal([record.group for record in records]),
    ]
    return group_by_edges(records, edges)


def group_by_edges(records: Sequence[Record], edges: Sequence[np.ndarray]) -> list[Record]:
    """Set the records' `group` by connected component; `edges` are arrays [edges, 2] of their indices."""
    labels = find_components(np.concatenate(edges), len(records))
    names: dict[int, str] = {}
    for label, record in zip(labels, records, strict=True):
        names[label] = min(hash_content(record), names.get(label, "~"))
    return [replace(record, group=names[label][:16]) for label, record in zip(labels, records, strict=True)]


class WordSets(NamedTuple):
    """The words of a text: all of them, and those outside text that many rows of its source share."""

    all: frozenset[str]
    own: frozenset[str]


def extract_word_sets(records: Sequence[Record]) -> tuple[list[WordSets], list[WordSets]]:
    """Extract the words of each record's question, and of its input, by which similarity is measured."""
    questions = extract_questions(records)
    inputs = [get_compared_texts(record).input for record in records]
    word_sets: tuple[list[WordSets], list[WordSets]] = (
        [EMPTY_WORD_SETS] * len(records),
        [EMPTY_WORD_SETS] * len(records),
    )
    for source in dict.fromkeys(record.source for record in records):
        numbers = [number for number, record in enumerate(records) if record.source == source]
        prompts = [make_prompt_key(records[number]) for number in numbers]
        for texts, all_sets in zip((questions, inputs), word_sets, strict=True):
            source_sets = extract_own_words([texts[number] for number in numbers], prompts)
            for number, words in zip(numbers, source_sets, strict=True):
                all_sets[number] = words
    return word_sets


EMPTY_WORD_SETS = WordSets(frozenset(), frozenset())


def extract_own_words(texts: Sequence[str], prompts: Sequence[str]) -> list[WordSets]:
    """Extract the words of one source's texts.

    Args:
        texts: the instructions, or the inputs, of the source's rows.
        prompts: the key of each row's prompt; rows with the same prompt count once.
    """
    shared = find_shared_sentences(texts, prompts)
    sets = [build_word_set(text) for text in texts]
    remainders = [
        build_word_set(remove_sentences(text, shared)) if shared else words
        for text, words in zip(texts, sets, strict=True)
    ]
    counts = Counter(word for remainder in pick_one_per_prompt(remainders, prompts) for word in remainder)
    limit = max(SHARED_LIMIT_MIN, COMMON_WORD_SHARE * len(set(prompts)))
    common = {word for word, count in counts.items() if count > limit}
    return [
        WordSets(words, (remainder - common or remainder) if common else remainder)
        for words, remainder in zip(sets, remainders, strict=True)
    ]


def find_shared_sentences(texts: Sequence[str], prompts: Sequence[str]) -> dict[str, int]:
    """Map each line or sentence, normalised, that very many prompts share to the number of these prompts."""
    counts = Counter(
        sentence
        for text in pick_one_per_prompt(texts, prompts)
        for sentence in set(map(normalize_text, split_sentences(text)))
    )
    limit = min(max(SHARED_LIMIT_MIN, SHARED_LIMIT_SHARE * len(set(prompts))), SHARED_LIMIT_MAX)
    return {sentence: count for sentence, count in counts.items() if count > limit}


def pick_one_per_prompt(values: Sequence, prompts: Sequence[str]) -> Collection:
    """Return one value per prompt, because a prompt may have several responses."""
    return dict(zip(prompts, values, strict=True)).values()


def split_sentences(text: str) -> list[str]:
    return [sentence for sentence in SENTENCE_END.split(text) if sentence and not sentence.isspace()]


def remove_sentences(text: str, shared: Collection[str]) -> str:
    return "\n".join(sentence for sentence in split_sentences(text) if normalize_text(sentence) not in shared)


def extract_questions(records: Sequence[Record]) -> list[str]:
    """Return each record's question without its line on how to answer; "" where it only names a task."""
    compared = [get_compared_texts(record) for record in records]
    questions = [strip_answer_format(texts.question) for texts in compared]
    keys = [normalize_text(text) for text in questions]
    distinct = {
        (key, normalize_text(texts.input)) for key, texts in zip(keys, compared, strict=True) if texts.input
    }
    inputs = Counter(key for key, _ in distinct)
    return [
        "" if texts.input and inputs[key] > TASK_INPUTS else text
        for text, key, texts in zip(questions, keys, compared, strict=True)
    ]


def find_components(edges: np.ndarray, count: int) -> list[int]:
    """Return the connected component of each of `count` nodes; `edges` is [edges, 2]."""
    graph = sparse.coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1].tolist()


def link_equal(texts: Sequence[str]) -> np.ndarray:
    """Link each text that is not empty to the first equal one: [edges, 2]."""
    first: dict[str, int] = {}
    edges = [(first.setdefault(text, number), number) for number, text in enumerate(texts) if text]
    return np.array(edges, dtype=np.int64).reshape(-1, 2)


def link_openings(records: Sequence[Record]) -> np.ndarray:
    """Link each record to the first one that opens with the same question: [edges, 2].

    So the beginnings of one chat stay together. A question that more than TASK_INPUTS different ones follow
    is a greeting, and the next one decides.
    """
    questions = [list_questions(record) for record in records]
    edges: list[tuple[int, int]] = []
    undecided, depth = [number for number, asked in enumerate(questions) if asked], 1
    while undecided:
        by_opening = defaultdict(list)
        for number in undecided:
            by_opening[tuple(questions[number][:depth])].append(number)
        undecided = []
        for numbers in by_opening.values():
            longer = [number for number in numbers if len(questions[number]) > depth]
            if len({questions[number][depth] for number in longer}) > TASK_INPUTS:
                undecided += longer
            else:
                edges += [(numbers[0], number) for number in numbers]
        depth += 1
    return np.array(edges, dtype=np.int64).reshape(-1, 2)


def link_similar(texts: Sequence[WordSets], similarity: float) -> np.ndarray:
    """Link texts whose words have at least this Jaccard similarity: [edges, 2].

    Texts with equal words are linked to the first of them alone.
    """
    first: dict[WordSets, int] = {}
    equal = [(first.setdefault(text, number), number) for number, text in enumerate(texts) if text.own]
    distinct = list(first)
    pairs = find_similar_pairs([text.own for text in distinct], similarity)
    pairs = pairs[
        [is_similar(distinct[one].all, distinct[other].all, similarity) for one, other in pairs.tolist()]
    ]
    numbers = np.array(list(first.values()), dtype=np.int64)
    return np.concatenate([np.array(equal, dtype=np.int64).reshape(-1, 2), numbers[pairs]])


def find_similar_labels(
    texts: Sequence[WordSets], others: Iterable[tuple[WordSets, str]], similarity: float
) -> list[set[str]]:
    """Find the labels of similar texts.

    Args:
        texts: the words of each text.
        others: the words and the label of each text to compare with.
        similarity: the least Jaccard similarity.

    Returns:
        For each text the labels of the others that are similar to it.
    """
    labels: dict[WordSets, set[str]] = defaultdict(set)
    for other, label in others:
        labels[other].add(label)
    # A cheap first test excludes most rows: too few of their words occur in any of the others.
    known = frozenset().union(*(other.own for other in labels))
    ours = [
        one
        for one in dict.fromkeys(texts)
        if one.own and len(one.own & known) >= similarity * len(one.own) - 1e-9
    ]
    theirs = [other for other in labels if other.own]
    similar_labels: dict[WordSets, set[str]] = defaultdict(set)
    pairs = find_similar_pairs([one.own for one in (*ours, *theirs)], similarity, across=len(ours))
    for one, other in ((ours[one], theirs[other - len(ours)]) for one, other in pairs.tolist()):
        if is_similar(one.all, other.all, similarity):
            similar_labels[one] |= labels[other]
    return [similar_labels.get(one, set()) for one in texts]


def is_similar(one: frozenset[str], other: frozenset[str], similarity: float) -> bool:
    shared = len(one & other)
    return shared >= similarity * (len(one) + len(other) - shared) - 1e-9


def build_word_set(text: str) -> frozenset[str]:
    words = frozenset(split_terms(text))
    return words - STOP_WORDS or words


def find_similar_pairs(
    sets: Sequence[frozenset[str]], similarity: float, across: int | None = None
) -> np.ndarray:
    """Find the pairs of sets with at least this Jaccard similarity.

    Args:
        sets: sets of words, none of them empty.
        similarity: the least Jaccard similarity.
        across: where given, only pairs of one of the first `across` sets with one of the others count.

    Returns:
        The indices of the sets, [pairs, 2].
    """
    frequency = Counter(word for words in sets for word in words)
    column = {
        word: number
        for number, word in enumerate(sorted(frequency, key=lambda word: (frequency[word], word)))
    }
    rows = [sorted(column[word] for word in words) for words in sets]
    # Without the small tolerance 0.7 * 10 would be rounded up to 8.
    prefixes = [row[: len(row) - math.ceil(similarity * len(row) - 1e-9) + 1] for row in rows]
    whole, short = build_incidence_matrix(rows, len(column)), build_incidence_matrix(prefixes, len(column))
    candidates = (
        sparse.triu(short @ short.T, k=1) if across is None else short[:across] @ short[across:].T
    ).tocoo()
    one, other = candidates.row, candidates.col + (across or 0)
    chunks = [slice(start, start + PAIRS_PER_CHUNK) for start in range(0, len(one) or 1, PAIRS_PER_CHUNK)]
    products = (whole[one[chunk]].multiply(whole[other[chunk]]) for chunk in chunks)
    shared = np.concatenate([np.asarray(product.sum(axis=1)).ravel() for product in products])
    sizes = np.array([len(row) for row in rows], dtype=np.int64)
    close = shared >= similarity * (sizes[one] + sizes[other] - shared) - 1e-9
    return np.stack([one[close], other[close]], axis=1).astype(np.int64)


def build_incidence_matrix(rows: Sequence[Sequence[int]], columns: int) -> sparse.csr_matrix:
    ends = np.cumsum([0, *(len(row) for row in rows)])
    indices = np.array([number for row in rows for number in row], dtype=np.int64)
    return sparse.csr_matrix(
        (np.ones(len(indices), dtype=np.int32), indices, ends), shape=(len(rows), columns)
    )
