"""Evaluate adapters and their base: measure every model on the same held-out rows, and compare them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from loratune.data.example import Example
from loratune.data.retokenize import retokenize_prompts
from loratune.data.template import BUILT_IN_TEMPLATES
from loratune.errors import UserError
from loratune.evaluation.aggregate import (
    aggregate_by,
    aggregate_rows,
    compute_forgetting,
    find_lowest_loss_base,
    get_category,
    get_source,
    summarize_adapters,
)
from loratune.evaluation.examples import build_examples, select_notable
from loratune.evaluation.forgetting import Prose, draw_windows
from loratune.evaluation.held_out import EvaluationSettings, HeldOut, Selection, limit_tokens
from loratune.evaluation.result import AdapterEvaluation, Evaluation, Forgetting
from loratune.evaluation.result_cache import ResultCache, load_result_cache
from loratune.evaluation.runner import (
    EvaluationSet,
    ModelResult,
    build_evaluation_set,
    compute_losses,
    measure_model,
)
from loratune.generation.prompt_format import PromptFormat
from loratune.model import LoadedAdapter, TunedModel
from loratune.models.tokenizer import Tokenizer
from loratune.system.cache import get_cache_folder
from loratune.system.messages import warn
from loratune.tasks.registry import build_constraints

WITHOUT_TEMPLATE = BUILT_IN_TEMPLATES["plain"]


@dataclass(frozen=True)
class EvaluationInputs:
    """All that an evaluation needs."""

    model: TunedModel
    settings: EvaluationSettings
    selection: Selection
    held_out: HeldOut
    prose: Prose  # plain text on which forgetting is measured


def evaluate_adapters(inputs: EvaluationInputs) -> Evaluation:
    """Measure the base and every adapter on the same rows, and on plain text.

    Raises:
        UserError: an adapter's losses are not finite.
    """
    model, settings, held_out = inputs.model, inputs.settings, inputs.held_out
    evaluation_set = build_set(inputs)
    windows = draw_windows(
        inputs.prose, model.text_tokenizer, model.decoder.spec.max_positions, settings.seed
    )
    with model.base():
        cache = open_cache(model, None)
        baselines = measure_baselines(inputs, evaluation_set, cache)
        base_prose = compute_losses("base on plain text", model.decoder, windows, result_cache=cache)[:, 0]
    results: list[ModelResult] = []
    evaluations: list[AdapterEvaluation] = []
    for adapter, name in zip(model.adapters, name_tuned_models(len(model.adapters)), strict=True):
        with model.using(adapter.folder):
            cache = open_cache(model, adapter)
            result = measure(name, held_out.examples, inputs, evaluation_set=evaluation_set, cache=cache)
            check_finite(result.nll, adapter.folder)
            title = f"{name} on plain text"
            tuned_prose = compute_losses(title, model.decoder, windows, result_cache=cache)[:, 0]
        forgetting = compute_forgetting(
            inputs.prose.name, windows, base=base_prose, tuned=tuned_prose, seed=settings.seed
        )
        models = {**baselines, "tuned": result}
        results.append(result)
        evaluations.append(
            compare_models(evaluation_set, models, adapter.folder, seed=settings.seed, forgetting=forgetting)
        )
    several = len(evaluations) > 1
    return Evaluation(
        **vars(evaluations[0]),
        base_model=model.resolved.name,
        data=inputs.selection.data,
        template=model.template.name,
        facts=settings.facts,
        without_gold_facts=inputs.selection.without_gold_facts,
        decoding=collect_decoding(settings),
        shortened=held_out.shortened,
        adapters=evaluations if several else [],
        spread=summarize_adapters(evaluations) if several else {},
        examples=build_examples(evaluation_set, baselines, results),
    )


def build_set(inputs: EvaluationInputs) -> EvaluationSet:
    held_out, tokenizer = inputs.held_out, inputs.model.tokenizer
    constraints = None
    if inputs.settings.constrain:
        answered = [held_out.records[number] for number in held_out.answered]
        constraints = build_constraints(answered, tokenizer)
    return build_evaluation_set(
        held_out.records,
        held_out.examples,
        held_out.answered,
        tokenizer=tokenizer,
        constraints=constraints,
        split_ids=inputs.selection.split_ids,
    )


def measure(
    name: str,
    examples: Sequence[Example],
    inputs: EvaluationInputs,
    *,
    evaluation_set: EvaluationSet,
    cache: ResultCache,
    tokenizer: Tokenizer | None = None,
) -> ModelResult:
    """Measure the model in its current state, adapter on or off; `tokenizer` says what ends its answers."""
    return measure_model(
        name,
        inputs.model.decoder,
        tokenizer or inputs.model.tokenizer,
        evaluation_set=evaluation_set,
        examples=examples,
        settings=inputs.settings.answers,
        result_cache=cache,
    )


def measure_baselines(
    inputs: EvaluationInputs, evaluation_set: EvaluationSet, cache: ResultCache
) -> dict[str, ModelResult]:
    """Measure the base in the adapter's template, without one, and in its own chat template if it has one.

    Where two of these are the same, the base is measured only once.
    """
    model, held_out = inputs.model, inputs.held_out
    options = {"evaluation_set": evaluation_set, "cache": cache}
    results = {"base": measure("base", held_out.examples, inputs, **options)}
    if inputs.settings.bare:
        results["base_bare"] = results["base"]
        if model.template != WITHOUT_TEMPLATE:
            untemplated = PromptFormat(WITHOUT_TEMPLATE, model.text_tokenizer)
            examples = retemplate(inputs, untemplated)
            results["base_bare"] = measure(
                "base without template", examples, inputs, tokenizer=model.text_tokenizer, **options
            )
    if inputs.settings.own_template and (own := model.own_format):
        if model.template == own.template:
            results["base_chat"] = results["base"]
            return results
        try:
            chats = retemplate(inputs, own)
        except UserError as error:
            warn(f"The base is not measured in its own chat template: {error}")
            return results
        title = "base in its own chat template"
        results["base_chat"] = measure(title, chats, inputs, tokenizer=own.tokenizer, **options)
    return results


def retemplate(inputs: EvaluationInputs, other: PromptFormat) -> list[Example]:
    """Return the held-out examples with the prompts of another template, and with its end token."""
    examples = retokenize_prompts(
        inputs.held_out.records,
        inputs.held_out.examples,
        other.template,
        tokenizer=other.tokenizer,
        max_tokens=limit_tokens(inputs.model, inputs.settings.max_tokens),
    )
    eos_id, end_id = inputs.model.tokenizer.eos_id, other.tokenizer.eos_id
    return [
        example if record.is_text else replace_end(example, eos_id, end_id)
        for record, example in zip(inputs.held_out.records, examples, strict=True)
    ]


def replace_end(example: Example, eos_id: int, end_id: int) -> Example:
    """Let a response that was not cut end with another token."""
    if example.response[-1:] != [eos_id]:
        return example
    return replace(example, response=[*example.response[:-1], end_id])


def open_cache(model: TunedModel, adapter: LoadedAdapter | None) -> ResultCache:
    """Open the cached results of the base with an adapter, or alone."""
    folder = adapter.folder if adapter else None
    device = model.decoder.head_weight.device.type
    return load_result_cache(get_cache_folder(), model.resolved.content, folder, device)


def name_tuned_models(count: int) -> list[str]:
    return ["tuned"] if count == 1 else [f"tuned {number}" for number in range(1, count + 1)]


def check_finite(nll: np.ndarray, adapter: Path) -> None:
    if not np.isfinite(nll).all():
        raise UserError(
            "its losses are not finite numbers",
            setting="adapter",
            value=adapter,
            remedy="the adapter is broken, train it again",
        )


def compare_models(
    evaluation_set: EvaluationSet,
    models: dict[str, ModelResult],
    adapter: Path,
    *,
    seed: int,
    forgetting: Forgetting,
) -> AdapterEvaluation:
    """Compare an adapter with the base on all rows, then by source and by category.

    Args:
        evaluation_set: what the models were measured on.
        models: the results by name; `base` and `tuned` are required.
        adapter: the adapter's folder.
        seed: of the bootstrap.
        forgetting: the comparison on plain text.
    """
    strongest = find_lowest_loss_base(evaluation_set, models)
    all_rows = aggregate_rows(evaluation_set, models, range(len(evaluation_set.records)), seed=seed)
    return AdapterEvaluation(
        **vars(all_rows),
        adapter=str(adapter),
        by_source=aggregate_by(evaluation_set, models, get_source, seed=seed),
        by_category=aggregate_by(evaluation_set, models, get_category, seed=seed),
        forgetting=forgetting,
        strongest_base=strongest,
        telling=select_notable(evaluation_set, models[strongest], models["tuned"]),
    )


def collect_decoding(settings: EvaluationSettings) -> dict[str, float]:
    """Return the settings that the answers depend on; nothing if no answers were written."""
    if not settings.generate:
        return {}
    decoding = settings.answers.decoding
    return {
        "max_new_tokens": decoding.max_new_tokens,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "top_k": decoding.top_k,
        "repetition_penalty": decoding.repetition_penalty,
        "seed": decoding.seed,
        "samples": settings.answers.samples,
        "constrain": settings.constrain,
    }
