"""Make the plan of a run from a configuration in which everything is decided."""

from collections.abc import Sequence

from loratune.config.train import DEFAULT_BATCH_TOKENS, TrainConfig
from loratune.data.example import Example
from loratune.data.packing import count_steps, input_length
from loratune.training.plan import AdapterSettings, StepSettings, TrainPlan
from loratune.training.schedule import StopRule
from loratune.training.setup.inputs import TrainInputs


def make_plan(config: TrainConfig, inputs: TrainInputs) -> TrainPlan:
    """Return the plan of a configuration in which everything is decided."""
    assert config.micro_tokens is not None, "decided by now"
    return TrainPlan(
        step=build_step_settings(config),
        stop_rule=build_stop_rule(config, inputs.examples),
        learning_rate=config.learning_rate,
        schedule=config.schedule,
        warmup=config.warmup,
        weight_decay=config.weight_decay,
        clip=config.clip,
        patience=config.patience,
        micro_tokens=config.micro_tokens,
        max_tokens=config.max_tokens,
        precision=config.precision,
        device=inputs.device,
        validations=config.validations,
        val_rows=config.val_rows,
    )


def build_step_settings(config: TrainConfig) -> StepSettings:
    adapter = AdapterSettings(
        rank=config.rank,
        alpha=config.alpha,
        dropout=config.dropout,
        targets=tuple(config.targets),
        seed=config.seed,
    )
    batch_tokens = config.batch_tokens or DEFAULT_BATCH_TOKENS
    return StepSettings(adapter, batch_tokens, config.low_memory, config.seed)


def build_stop_rule(config: TrainConfig, examples: Sequence[Example]) -> StopRule:
    if config.epochs:
        assert config.batch_tokens and config.micro_tokens, "decided by now"
        lengths = [input_length(example) for example in examples]
        steps = count_steps(
            config.epochs, lengths, config.batch_tokens, micro_tokens=config.micro_tokens, seed=config.seed
        )
        return StopRule(steps=steps)
    return StopRule(steps=config.steps, seconds=config.budget)
