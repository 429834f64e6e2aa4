"""The ranking of a page's facts."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loratune.tasks.finqa.facts import build_page_facts
from loratune.tasks.finqa.ranker import (
    compute_feature_columns,
    list_rankable,
    load_weights,
    rank_facts,
    stem_words,
)
from tools.ranker import WEIGHTS_FILE, TrainingFacts, listwise_loss

TABLE = [["in millions", "2008", "2007"], ["revenue", "$ 120", "$ 100"], ["cost of sales", "70", "60"]]
FACTS = build_page_facts(
    ["the company sells shoes .", "it was founded in 1920 ."], ["the tax rate was 21% in 2008 ."], TABLE
)
texts = st.text(max_size=30) | st.lists(
    st.sampled_from(["revenue", "in 2008", "$ 5", "the", "of", "is", ".", "("])
).map(" ".join)
tables = st.lists(st.lists(texts, max_size=4), max_size=4)


def test_fact_that_answers_the_question_ranks_first():
    assert rank_facts("what was the growth of revenue from 2007 to 2008 ?", FACTS)[0] == "table_1"
    ranked = rank_facts("which tax rate applied ?", FACTS)
    assert ranked.index("text_2") < ranked.index("text_0")


def test_header_and_empty_sentences_are_not_ranked():
    facts = build_page_facts(["."], ["9 ."], TABLE)
    assert sorted(rank_facts("what was the revenue ?", facts)) == ["table_1", "table_2"]
    assert rank_facts("what was the revenue ?", build_page_facts(["."], [], [])) == []


@given(texts, st.lists(texts, max_size=4), st.lists(texts, max_size=4), tables)
def test_any_page_is_ranked_completely_and_deterministically(question, before, after, table):
    facts = build_page_facts(before, after, table)
    ranked = rank_facts(question, facts)
    assert sorted(ranked) == sorted(list_rankable(facts))
    assert ranked == rank_facts(question, dict(facts))
    if ranked:
        columns = compute_feature_columns(question, facts, ranked)
        assert all(
            values.shape == (len(ranked),) and np.isfinite(values).all() for values in columns.values()
        )


def test_stemming_joins_word_forms():
    assert stem_words("payments of 2.5") == stem_words("the payment , 2.5")
    assert stem_words("changed") == stem_words("changes") == stem_words("change")


def test_stored_weights_match_the_features():
    titles = list(compute_feature_columns("revenue ?", FACTS, list_rankable(FACTS)))
    assert list(json.loads(WEIGHTS_FILE.read_text())["hidden"]) == titles
    assert (
        load_weights()["hidden"].shape
        == (len(titles), len(load_weights()["bias"]))
        == (len(titles), len(load_weights()["out"]))
    )


def test_listwise_loss_is_softmax_of_needed_among_other_facts():
    pages = TrainingFacts(
        [],
        torch.empty(0),
        torch.tensor([1, 0, 1, 0, 1]).bool(),
        torch.tensor([0, 0, 0, 1, 1]),
        torch.tensor([1.0, 0.5]),
    )
    scores = torch.tensor([0.3, -1.0, 2.0, 0.5, 0.1])

    def loss(needed, other):
        return -torch.log_softmax(scores[[needed, other]], 0)[0]

    expected = (loss(0, 1) + loss(2, 1) + 0.5 * loss(4, 3)) / 2.5
    assert listwise_loss(scores, pages).item() == pytest.approx(expected.item())
