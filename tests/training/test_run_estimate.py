"""The estimate of a run: its steps, time and memory from a measurement and the plan."""

from dataclasses import replace

import pytest

from loratune.data.packing import input_length, plan_epoch
from loratune.training.autotune import Measurement
from loratune.training.run_estimate import estimate_run
from loratune.training.schedule import StopRule
from support.plain_lora import build_random_examples
from support.plans import PLAN


def test_run_estimate_adds_up_steps_validations_and_memory():
    measurement = Measurement(
        "fp32", 256, train_seconds=0.01, validation_seconds=0.002, memory=3e9, token_memory=1e6
    )
    plan = replace(PLAN, validations=4)
    examples = build_random_examples([(7, 3)], 200) * 1000
    val_examples = examples[:100]
    tokens = input_length(examples[0])
    estimate = estimate_run(measurement, int(1e9), plan, examples=examples, val_examples=val_examples)
    step_seconds = 1000 * tokens / len(plan_epoch([tokens] * 1000, 512, 256, seed=0, epoch=0)) * 0.01
    assert estimate.seconds == pytest.approx(20 * step_seconds + 5 * 100 * tokens * 0.002)
    # The fullest micro-batch is not quite full.
    assert estimate.peak_memory_mb == 4000 - (256 - 256 // tokens * tokens)
    enough = replace(plan, stop_rule=StopRule(seconds=100 * step_seconds + 5 * 100 * tokens * 0.002))
    assert (
        estimate_run(measurement, int(1e9), enough, examples=examples, val_examples=val_examples).steps == 100
    )
    # Two validations fit into so short a budget, not five.
    short = replace(plan, stop_rule=StopRule(seconds=5 * step_seconds))
    assert estimate_run(measurement, int(1e9), short, examples=examples, val_examples=val_examples).steps == 4
