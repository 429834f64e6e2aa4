"""A training plan that tests can change."""

from dataclasses import replace
from typing import Any

from loratune.training.plan import AdapterSettings, StepSettings, TrainPlan
from loratune.training.schedule import StopRule

ADAPTER = AdapterSettings(rank=4, alpha=32.0, dropout=0.0, targets=("all",), seed=0)
STEP = StepSettings(ADAPTER, batch_tokens=512, low_memory=False, seed=0)
PLAN = TrainPlan(
    step=STEP,
    stop_rule=StopRule(steps=20),
    learning_rate=1e-3,
    schedule="cosine",
    warmup=0.03,
    weight_decay=0.0,
    clip=1.0,
    patience=0,
    micro_tokens=256,
    max_tokens=64,
    precision="fp32",
    device="cpu",
    validations=10,
    val_rows=64,
)


def make_step(**changes: Any) -> StepSettings:
    """Return STEP with changes, also those of its adapter."""
    of_adapter = {
        name: changes.pop(name) for name in ("rank", "alpha", "dropout", "targets") if name in changes
    }
    return replace(STEP, adapter=replace(ADAPTER, **of_adapter), **changes)
