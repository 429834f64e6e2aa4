"""Sequence packing: no row is lost, and the order depends on (seed, step) alone."""

import itertools
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from loratune.data.example import Example
from loratune.data.packing import (
    batch_in_order,
    count_steps,
    input_length,
    iterate_steps,
    pack,
    pack_best_fit,
    plan_epoch,
)

TOKENS = st.lists(st.integers(0, 99), max_size=9)
ROWS = st.lists(
    st.builds(
        lambda prompt, response: Example(prompt=prompt, response=response, id="", source=""),
        TOKENS,
        st.lists(st.integers(0, 99), min_size=1, max_size=9),
    ),
    min_size=1,
    max_size=8,
)
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@given(ROWS)
def test_target_index_points_to_the_preceding_token(rows):
    batch = pack(rows)
    assert len(batch.input_ids) == len(batch.position_ids) == sum(batch.lengths)
    start, seen = 0, 0
    for number, row in enumerate(rows):
        whole = row.prompt + row.response
        assert batch.input_ids[start : start + batch.lengths[number]].tolist() == whole[:-1]
        assert batch.position_ids[start : start + batch.lengths[number]].tolist() == list(
            range(len(whole) - 1)
        )
        for place in range(max(len(row.prompt), 1), len(whole)):
            assert batch.target_index[seen] == start + place - 1
            assert batch.targets[seen] == whole[place]
            assert batch.example_index[seen] == number
            seen += 1
        start += batch.lengths[number]
    assert seen == len(batch.targets)


@given(LENGTHS, st.integers(1, 100))
def test_batch_in_order_keeps_order_and_limit(lengths, limit):
    groups = list(batch_in_order(lengths, range(len(lengths)), limit))
    assert [row for group in groups for row in group] == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in group) <= limit or len(group) == 1 for group in groups)


@given(LENGTHS, st.integers(1, 100))
def test_best_fit_loses_no_row_and_opens_no_needless_group(lengths, limit):
    groups = pack_best_fit(lengths, range(len(lengths)), limit)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    sizes = sorted(sum(lengths[row] for row in group) for group in groups)
    assert all(size <= limit for size in sizes if size > max(lengths))
    assert all(
        one + other > limit for one, other in itertools.pairwise(sizes)
    )  # else they would have been one


@given(LENGTHS, st.integers(0, 5), st.integers(0, 3))
def test_epoch_contains_every_row_once_for_any_micro_batch_size(lengths, seed, epoch):
    small = plan_epoch(lengths, 100, 40, seed=seed, epoch=epoch)
    large = plan_epoch(lengths, 100, 100, seed=seed, epoch=epoch)
    flat = [sorted(row for micro in step for row in micro) for step in small]
    assert flat == [sorted(row for micro in step for row in micro) for step in large]
    assert sorted(row for step in flat for row in step) == list(range(len(lengths)))


@given(LENGTHS, st.integers(0, 5), st.integers(0, 25))
def test_steps_resume_in_the_same_order(lengths, seed, start):
    whole = list(islice(iterate_steps(lengths, 80, 40, seed=seed), start + 5))
    assert list(islice(iterate_steps(lengths, 80, 40, seed=seed, start=start), 5)) == whole[start:]


def test_order_differs_between_epochs_and_seeds():
    orders = [
        [
            row
            for step in plan_epoch([10] * 30, 10, 10, seed=seed, epoch=epoch)
            for micro in step
            for row in micro
        ]
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    ]
    assert len({tuple(order) for order in [*orders, list(range(30))]}) == 7


def test_fractions_of_epochs_are_rounded_up_to_steps():
    lengths = [10] * 100
    assert count_steps(1, lengths, 100, micro_tokens=100, seed=0) == 10
    assert count_steps(0.25, lengths, 100, micro_tokens=100, seed=0) == 3
    assert count_steps(2.5, lengths, 100, micro_tokens=100, seed=0) == 25


def test_last_response_token_is_not_an_input():
    assert input_length(Example(prompt=[1, 2], response=[3, 4], id="", source="")) == 3
