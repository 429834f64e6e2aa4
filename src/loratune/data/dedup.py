"""Which records must stay together: those with nearly the same instruction or nearly the same input.

What very many rows of a source share, such as a system message, a greeting, a preamble or a schema, is no
likeness: two texts are alike if they are so with it and without it. So leaving it out only ever parts rows,
it never joins any.

Exact, deterministic, and no comparison of all pairs: two sets with a Jaccard similarity of at least t share a
word among the first |set| - ceil(t |set|) + 1 words of each, when the words are put in one order for all
sets, the rarest first (prefix filtering; Bayardo, Ma and Srikant, 2007).
"""

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from loratune.data.example import Record
from loratune.data.words import split_terms, split_words

# Chosen on Dolly: at 0.7 its largest group is 42 rows of one series of questions, at 0.6 unrelated "who is
# the best ..." join.
INSTRUCTION_SIMILARITY = 0.7
INPUT_SIMILARITY = 0.8
# An instruction that comes with more inputs than this names a task ("Classify this review."); the question is
# in the input then, and rows of the task may be parted. (Dolly's most frequent one has 15 inputs.)
TASK_INPUTS = 20
# A line or sentence is shared by very many rows if it is in more prompts than this, and than this share of
# the source's; in more than MANY it always is. A passage with its questions stays together: the most that
# Dolly asks of one is 12, SQuAD about 25. Dolly's most frequent sentence, "Identify which instrument is
# string or percussion:", is in 228, 1.5 %.
SHARED_LIMIT_MIN, SHARED_LIMIT_SHARE, SHARED_LIMIT_MAX = 30, 0.02, 500
# A word is, if it is in more than this share of the prompts; in Dolly, "about" is in 7 %, and in its inputs
# "also" in 10 %.
COMMON_WORD_SHARE = 0.2
# Chinese and Japanese, and Hindi, end sentences with these; no space need follow.
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


def normalize_text(text: str) -> str:
    """The text without differences in case and white space."""
    return " ".join(text.casefold().split())


def hash_content(record: Record) -> str:
    content = "\0".join(normalize_text(text) for text in (record.instruction, record.input, record.output))
    return hashlib.sha256(content.encode()).hexdigest()


def remove_duplicates(
    records: Sequence[Record], keep_duplicates_in: Sequence[Sequence[Record]] = ()
) -> list[Record]:
    """The first of all records with the same content, but for case and white space; their ids are made
    unique.

    Each part in `all_of`, some of these same records, keeps the duplicates that are all its own.
    """
    part_of = {id(record): number for number, part in enumerate(keep_duplicates_in) for record in part}
    first: dict[str, Record] = {}
    distinct = []
    for record in records:
        kept = first.setdefault(hash_content(record), record)
        if kept is record or (id(record) in part_of and part_of[id(record)] == part_of.get(id(kept))):
            distinct.append(record)
    return make_ids_unique(distinct)


def make_ids_unique(records: Sequence[Record]) -> list[Record]:
    found = []
    count: Counter[str] = Counter()
    taken: set[str] = set()
    for record in records:
        unique = record.id
        while unique in taken:
            count[record.id] += 1
            unique = f"{record.id}#{count[record.id] + 1}"
        taken.add(unique)
        found.append(replace(record, id=unique))
    return found


def assign_groups(records: Sequence[Record]) -> list[Record]:
    """The records with `group` set: near-duplicates, and those that had the same group before, get the same
    one.

    A group is named after its content, so that it does not depend on the order of the records.
    """
    asked, inputs = extract_word_sets(records)
    edges = [
        link_similar(asked, INSTRUCTION_SIMILARITY),
        link_similar(inputs, INPUT_SIMILARITY),
        link_equal([make_prompt_key(record) for record in records]),
        link_equal([record.group for record in records]),
    ]
    return group_by_edges(records, edges)


def group_by_edges(records: Sequence[Record], edges: Sequence[np.ndarray]) -> list[Record]:
    labels = find_components(np.concatenate(edges), len(records))
    names: dict[int, str] = {}
    for label, record in zip(labels, records, strict=True):
        names[label] = min(hash_content(record), names.get(label, "~"))
    return [replace(record, group=names[label][:16]) for label, record in zip(labels, records, strict=True)]


def make_prompt_key(record: Record) -> str:
    return "\0".join(normalize_text(text) for text in (record.instruction, record.input))


class WordSets(NamedTuple):
    """The words of a text, and of these its own: without what very many rows of its source share."""

    all: frozenset[str]
    own: frozenset[str]


def extract_word_sets(records: Sequence[Record]) -> tuple[list[WordSets], list[WordSets]]:
    """What the likeness of each record's instruction, and of its input, is judged by."""
    asked, inputs = extract_questions(records), [record.input for record in records]
    found: tuple[list[WordSets], list[WordSets]] = (
        [EMPTY_WORD_SETS] * len(records),
        [EMPTY_WORD_SETS] * len(records),
    )
    for source in dict.fromkeys(record.source for record in records):
        own = [number for number, record in enumerate(records) if record.source == source]
        prompts = [make_prompt_key(records[number]) for number in own]
        for texts, of_all in zip((asked, inputs), found, strict=True):
            for number, of_text in zip(
                own, extract_own_words([texts[number] for number in own], prompts), strict=True
            ):
                of_all[number] = of_text
    return found


EMPTY_WORD_SETS = WordSets(frozenset(), frozenset())


def extract_own_words(texts: Sequence[str], prompts: Sequence[str]) -> list[WordSets]:
    """The words of the texts of one source; a text that comes with several of the `prompts` counts once for
    each.
    """
    shared = find_shared_sentences(texts, prompts)
    sets = [build_word_set(text) for text in texts]
    rests = [
        build_word_set(remove_sentences(text, shared)) if shared else found
        for text, found in zip(texts, sets, strict=True)
    ]
    counts = Counter(word for rest in pick_one_per_prompt(rests, prompts) for word in rest)
    limit = max(SHARED_LIMIT_MIN, COMMON_WORD_SHARE * len(set(prompts)))
    common = {word for word, count in counts.items() if count > limit}
    return [
        WordSets(found, (rest - common or rest) if common else rest)
        for found, rest in zip(sets, rests, strict=True)
    ]


def find_shared_sentences(texts: Sequence[str], prompts: Sequence[str]) -> dict[str, int]:
    """Lines and sentences, folded, that very many of the prompts have in these texts, and how many have
    them.
    """
    counts = Counter(
        sentence
        for text in pick_one_per_prompt(texts, prompts)
        for sentence in set(map(normalize_text, split_sentences(text)))
    )
    limit = min(max(SHARED_LIMIT_MIN, SHARED_LIMIT_SHARE * len(set(prompts))), SHARED_LIMIT_MAX)
    return {sentence: count for sentence, count in counts.items() if count > limit}


def pick_one_per_prompt(values: Sequence, prompts: Sequence[str]) -> Collection:
    """The same prompt with several responses is one."""
    return dict(zip(prompts, values, strict=True)).values()


def split_sentences(text: str) -> list[str]:
    return [sentence for sentence in SENTENCE_END.split(text) if sentence and not sentence.isspace()]


def remove_sentences(text: str, shared: Collection[str]) -> str:
    return "\n".join(sentence for sentence in split_sentences(text) if normalize_text(sentence) not in shared)


def extract_questions(records: Sequence[Record]) -> list[str]:
    """The instruction of each record, without a line on how to answer, or "" where it only names a task."""
    asked = [strip_answer_format(record.instruction) for record in records]
    keys = [normalize_text(text) for text in asked]
    distinct = {
        (key, normalize_text(record.input)) for key, record in zip(keys, records, strict=True) if record.input
    }
    inputs = Counter(key for key, _ in distinct)
    return [
        "" if record.input and inputs[key] > TASK_INPUTS else text
        for text, key, record in zip(asked, keys, records, strict=True)
    ]


def strip_answer_format(instruction: str) -> str:
    """Without a last line that says in what form to answer, as FinQA's rows have it: "Answer with a
    program.".
    """
    question, _, last = instruction.rstrip().rpartition("\n")
    return question if question and normalize_text(last).startswith("answer with ") else instruction


def find_components(edges: np.ndarray, count: int) -> list[int]:
    """The number of its connected component for each of `count` nodes; `edges` is [edges, 2]."""
    graph = sparse.coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1].tolist()


def link_equal(texts: Sequence[str]) -> np.ndarray:
    """[edges, 2]: each row with a non-empty text to the first that has it, too."""
    first: dict[str, int] = {}
    edges = [(first.setdefault(text, number), number) for number, text in enumerate(texts) if text]
    return np.array(edges, dtype=np.int64).reshape(-1, 2)


def link_similar(texts: Sequence[WordSets], similarity: float) -> np.ndarray:
    """[edges, 2]: pairs of texts whose words have at least this Jaccard similarity; a chain where words are
    equal.
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
    """For each text the labels of those `others`, (words, label), whose words have at least this Jaccard
    similarity.
    """
    labels: dict[WordSets, set[str]] = defaultdict(set)
    for other, label in others:
        labels[other].add(label)
    # Most rows are ruled out cheaply: too few of their words occur in the others at all.
    known = frozenset().union(*(other.own for other in labels))
    ours = [
        one
        for one in dict.fromkeys(texts)
        if one.own and len(one.own & known) >= similarity * len(one.own) - 1e-9
    ]
    theirs = [other for other in labels if other.own]
    found: dict[WordSets, set[str]] = defaultdict(set)
    pairs = find_similar_pairs([one.own for one in (*ours, *theirs)], similarity, across=len(ours))
    for one, other in ((ours[one], theirs[other - len(ours)]) for one, other in pairs.tolist()):
        if is_similar(one.all, other.all, similarity):
            found[one] |= labels[other]
    return [found.get(one, set()) for one in texts]


def is_similar(one: frozenset[str], other: frozenset[str], similarity: float) -> bool:
    shared = len(one & other)
    return shared >= similarity * (len(one) + len(other) - shared) - 1e-9


def build_word_set(text: str) -> frozenset[str]:
    found = frozenset(split_terms(text))
    return found - STOP_WORDS or found


def find_similar_pairs(
    sets: Sequence[frozenset[str]], similarity: float, across: int | None = None
) -> np.ndarray:
    """[pairs, 2]: numbers of the non-empty sets with at least this Jaccard similarity.

    With `across`, only pairs of one of the first `across` sets and one of the others.
    """
    frequency = Counter(word for found in sets for word in found)
    column = {
        word: number
        for number, word in enumerate(sorted(frequency, key=lambda word: (frequency[word], word)))
    }
    rows = [sorted(column[word] for word in found) for found in sets]
    # The small tolerance keeps 0.7 * 10 at 7.
    prefixes = [row[: len(row) - math.ceil(similarity * len(row) - 1e-9) + 1] for row in rows]
    whole, short = build_incidence_matrix(rows, len(column)), build_incidence_matrix(prefixes, len(column))
    candidates = (
        sparse.triu(short @ short.T, k=1) if across is None else short[:across] @ short[across:].T
    ).tocoo()
    one, other = candidates.row, candidates.col + (across or 0)
    shared = np.asarray(whole[one].multiply(whole[other]).sum(axis=1)).ravel()
    sizes = np.array([len(row) for row in rows], dtype=np.int64)
    close = shared >= similarity * (sizes[one] + sizes[other] - shared) - 1e-9
    return np.stack([one[close], other[close]], axis=1).astype(np.int64)


def build_incidence_matrix(rows: Sequence[Sequence[int]], columns: int) -> sparse.csr_matrix:
    ends = np.cumsum([0, *(len(row) for row in rows)])
    indices = np.array([number for row in rows for number in row], dtype=np.int64)
    return sparse.csr_matrix(
        (np.ones(len(indices), dtype=np.int32), indices, ends), shape=(len(rows), columns)
    )
