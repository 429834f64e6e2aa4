"""`loratune train`: a LoRA adapter from the prepared data."""

from dataclasses import asdict

from loratune.api.train import TrainResult, run_training, set_up_run
from loratune.config.train import TrainConfig
from loratune.data.packing import input_length
from loratune.evaluation.result import Spread
from loratune.evaluation.statistics import mean_and_deviation
from loratune.report.terminal.training import training_bar
from loratune.system.console import say
from loratune.training.setup import Setup
from loratune.training.setup.defaults import create_run_name


def run(config: TrainConfig) -> dict:
    return train_seeds(config) if config.repeat > 1 else train_once(config)


def train_seeds(config: TrainConfig) -> dict:
    """Train with one seed after another, each a run and an adapter of its own."""
    name, runs = config.run or create_run_name(), []
    for seed in range(config.seed, config.seed + config.repeat):
        own = {"run": f"{name}-seed{seed}", "out": config.out.with_name(f"{config.out.name}-seed{seed}")}
        say(f"Training {len(runs) + 1} of {config.repeat}: --seed {seed}")
        runs.append(train_once(config.model_copy(update={"seed": seed, "repeat": 1, **own})))
        if config.dry_run or not runs[-1]["finished"]:
            break
    else:
        spread = Spread(**mean_and_deviation([one["best_val_nll"] for one in runs]))
        loss = f"{spread.mean:.4f}±{spread.standard_deviation:.4f}"
        adapters = " ".join(one["adapter"] for one in runs)
        say(f"All trained: validation loss {loss}, mean and standard deviation.")
        say(f"The same on held-out rows: loratune evaluate --adapter {adapters}")
    return {"runs": runs}


def train_once(config: TrainConfig) -> dict:
    setup = set_up_run(config)
    if setup.config.dry_run:
        return build_dry_run_result(setup)
    return run_and_show(setup).to_json()


def run_and_show(setup: Setup) -> TrainResult:
    with training_bar() as bar:
        return run_training(setup, bar.show)


def build_dry_run_result(setup: Setup) -> dict:
    plan = setup.plan
    return {
        "dry_run": True,
        "rows": len(setup.inputs.examples),
        "tokens_per_epoch": sum(map(input_length, setup.inputs.examples)),
        "precision": plan.precision,
        "batch_tokens": plan.step.batch_tokens,
        "micro_tokens": plan.micro_tokens,
        "val_rows": plan.val_rows,
        "expected": asdict(setup.estimate) if setup.estimate else None,
    }
