"""The stop rule and the learning rate schedule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratune.training.schedule import StopRule, learning_rate_factor

KINDS = ["cosine", "linear", "constant"]


@given(st.floats(0, 1), st.floats(0, 0.9), st.sampled_from(KINDS))
def test_learning_rate_factor_is_between_0_and_1(progress, warmup, kind):
    assert 0 <= learning_rate_factor(progress, warmup, kind) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_schedule_warms_up_peaks_and_decays(kind):
    assert learning_rate_factor(0, 0.1, kind) == 0
    assert learning_rate_factor(0.05, 0.1, kind) == pytest.approx(0.5)
    assert learning_rate_factor(0.1, 0.1, kind) == pytest.approx(1)
    assert learning_rate_factor(1, 0.1, kind) == pytest.approx(1 if kind == "constant" else 0)


@given(st.floats(1, 1000), st.floats(0.01, 20))
def test_budget_is_used_but_not_exceeded_and_the_schedule_ends_with_it(seconds, pace):
    rule, step, elapsed, progress = StopRule(seconds=seconds), 0, 0.0, 0.0
    while not rule.is_over(step, elapsed, pace) and step < 2000:
        progress = rule.compute_progress(step, elapsed, pace)
        step, elapsed = step + 1, elapsed + pace
    if 1 < step < 2000:
        assert seconds - pace <= elapsed <= seconds + 1e-6
        assert progress >= 1 - 1.5 * pace / seconds


def test_steps_rule_ends_after_its_steps():
    rule = StopRule(steps=4)
    assert [rule.compute_progress(step, 0, 0) for step in range(4)] == [0.125, 0.375, 0.625, 0.875]
    assert not rule.is_over(3, 1e9, 1)
    assert rule.is_over(4, 0, 1)
    assert rule.compute_seconds_left(1, 10, 10) == 30


def test_validations_take_at_most_a_tenth_of_the_budget():
    assert StopRule(seconds=600).count_affordable_validations(10, 5.0) == 10
    assert StopRule(seconds=600).count_affordable_validations(10, 11.0) == 4
    assert StopRule(seconds=600).count_affordable_validations(10, 700.0) == 1
    assert StopRule(steps=5).count_affordable_validations(10, 700.0) == 10
