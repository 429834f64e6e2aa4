"""`loratune evaluate`: the base and the tuned model, or several tuned ones, on the same held-out rows."""

from collections.abc import Sequence

from loratune.api.evaluate import load_inputs
from loratune.commands.dry_run import TIMING, Plan, show_plan
from loratune.config.evaluate import EvaluateConfig
from loratune.data.example import Example
from loratune.evaluation.estimate import estimate_answering_seconds, estimate_reading_seconds
from loratune.evaluation.evaluate import (
    WITHOUT_TEMPLATE,
    EvaluationInputs,
    evaluate_adapters,
)
from loratune.evaluation.forgetting import draw_windows
from loratune.evaluation.held_out import EvaluationSettings
from loratune.evaluation.result import Evaluation
from loratune.models.decoder import Decoder
from loratune.report.terminal.evaluation import show_evaluation
from loratune.system.atomic import write_json
from loratune.system.console import console, say


def run(config: EvaluateConfig) -> dict:
    inputs = load_inputs(config)
    if config.dry_run:
        return show_plan(plan_evaluation(inputs, config))
    return evaluate_and_show(inputs, config).to_json()


def evaluate_and_show(inputs: EvaluationInputs, config: EvaluateConfig) -> Evaluation:
    evaluation = evaluate_adapters(inputs)
    write_json(config.out, evaluation.to_json())
    show_evaluation(evaluation)
    say(f"Written: {config.out}")
    return evaluation


def plan_evaluation(inputs: EvaluationInputs, config: EvaluateConfig) -> Plan:
    model, held_out, settings = inputs.model, inputs.held_out, inputs.settings
    prompts = [held_out.examples[number].prompt for number in held_out.answered]
    windows = draw_windows(
        inputs.prose, model.text_tokenizer, model.decoder.spec.max_positions, settings.seed
    )
    adapters = len(model.adapters)
    baselines = 2 if settings.bare and model.template != WITHOUT_TEMPLATE else 1
    own = model.own_format
    if settings.own_template and own and own.template != model.template:
        baselines += 1
    models = adapters + baselines
    seconds = estimate_evaluation_seconds(
        model.decoder,
        held_out.examples,
        prompts,
        windows=windows,
        models=models,
        adapters=adapters,
        settings=settings,
    )
    rows = len(held_out.examples)
    reads = {
        config.data: f"{rows:,} rows, {len(prompts):,} of them to answer, by {models} models",
        inputs.prose.name: f"{len(windows)} windows",
    }
    return Plan(
        reads, [config.out], seconds, "timed on a small piece; less if answers end early, or are known"
    )


def estimate_evaluation_seconds(
    decoder: Decoder,
    examples: Sequence[Example],
    prompts: Sequence[list[int]],
    *,
    windows: Sequence[Example],
    models: int,
    adapters: int,
    settings: EvaluationSettings,
) -> float:
    """Estimate the time in which all models read the rows and answer, and base and adapters read prose."""
    with console.status(TIMING):
        rows_seconds = estimate_reading_seconds(decoder, examples)
        answers_seconds = estimate_answering_seconds(decoder, prompts, settings.answers)
        windows_seconds = estimate_reading_seconds(decoder, windows)
    return models * (rows_seconds + answers_seconds) + (1 + adapters) * windows_seconds
