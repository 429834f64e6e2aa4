"""`loratune evaluate`: the base and the tuned model, or several tuned ones, on the same held-out rows."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from loratune.commands.decoding import build_answer_settings
from loratune.commands.dry_run import TIMING, Plan, show_plan
from loratune.commands.loading import TunedModel, load_tuned_models
from loratune.config.evaluate import EvaluateConfig
from loratune.data.example import Example, Record
from loratune.data.jsonl import read_records
from loratune.data.sample import draw_stratified_sample
from loratune.data.sources.resolve import list_shipped
from loratune.data.template import BUILT_IN_TEMPLATES
from loratune.data.tokenize import list_end_markers, retokenize_prompts, strip_end_markers, tokenize_records
from loratune.errors import UserError
from loratune.evaluation.aggregate import compare_models, compute_forgetting, summarize_adapters
from loratune.evaluation.estimate import estimate_answering_seconds, estimate_reading_seconds
from loratune.evaluation.examples import build_row_results, select_notable
from loratune.evaluation.forgetting import Prose, draw_windows, load_prose
from loratune.evaluation.result_cache import ResultCache, load_result_cache
from loratune.evaluation.runner import (
    EvaluationSet,
    ModelResult,
    build_evaluation_set,
    compute_losses,
    measure_model,
)
from loratune.models.adapter import load_adapter
from loratune.models.lora import without_adapter
from loratune.report.terminal.evaluation import show_evaluation
from loratune.report.terminal.prepared import format_end_markers
from loratune.system.atomic import refuse_unwritable, write_json
from loratune.system.cache import get_cache_folder
from loratune.system.console import console, say, warn
from loratune.tasks.registry import SOURCES, TASKS, build_constraints, select_row_facts, task_of

PREPARED_TEST_DATA = Path("data/test.jsonl")
TOO_MANY_CUT = 0.05
WITHOUT_TEMPLATE = BUILT_IN_TEMPLATES["plain"]


def run(settings: EvaluateConfig) -> dict:
    refuse_unwritable(settings.out)
    prose = load_prose(settings.forgetting)
    usable, without_facts = select_facts(read_evaluation_records(settings.data), settings)
    records = draw_stratified_sample(usable, settings.rows, settings.seed) if settings.rows else usable
    tuned = load_tuned_models(settings, settings.adapter)
    records, rows, shortened = encode_records(records, tuned[0], settings.max_tokens)
    if settings.dry_run:
        return show_plan(plan_evaluation(tuned, records, rows, settings, prose))
    result = {
        "base_model": tuned[0].base.name,
        "adapter": str(tuned[0].adapter),
        "data": settings.data,
        "template": tuned[0].template.name,
        "facts": settings.facts,
        "without_gold_facts": without_facts,
        "decoding": collect_decoding(settings),
        "shortened": shortened,
        **evaluate_rows(tuned, records, rows, settings, prose, count_split_ids(usable, settings)),
    }
    write_json(settings.out, result)
    show_evaluation(result)
    say(f"Written: {settings.out}")
    return result


def plan_evaluation(
    tuned: Sequence[TunedModel],
    records: Sequence[Record],
    rows: Sequence[Example],
    settings: EvaluateConfig,
    prose: Prose,
) -> Plan:
    first = tuned[0]
    number_of = {id(record): number for number, record in enumerate(records)}
    prompts = [
        rows[number_of[id(record)]].prompt
        for record in draw_stratified_sample(records, settings.generate, settings.seed)
    ]
    windows = draw_windows(prose, first.tokenizer, first.decoder.spec.max_positions, settings.seed)
    models = len(tuned) + (2 if settings.bare and first.template != WITHOUT_TEMPLATE else 1)
    seconds = estimate_evaluation_seconds(first.decoder, rows, prompts, windows, models, len(tuned), settings)
    reads = {
        settings.data: f"{len(rows):,} rows, {len(prompts):,} of them to answer, by {models} models",
        prose.name: f"{len(windows)} windows",
    }
    return Plan(
        reads, [settings.out], seconds, "timed on a small piece; less if answers end early, or are known"
    )


def estimate_evaluation_seconds(
    decoder,
    rows: Sequence[Example],
    prompts: Sequence[list[int]],
    windows: Sequence[Example],
    models: int,
    adapters: int,
    settings: EvaluateConfig,
) -> float:
    """Estimate the time in which all models read the rows and answer, and base and adapters read prose."""
    with console.status(TIMING):
        rows_seconds = estimate_reading_seconds(decoder, rows)
        answers_seconds = estimate_answering_seconds(decoder, prompts, build_answer_settings(settings))
        windows_seconds = estimate_reading_seconds(decoder, windows)
    return models * (rows_seconds + answers_seconds) + (1 + adapters) * windows_seconds


def read_evaluation_records(data: str) -> list[Record]:
    """Read the rows of a file, or the rows of one source in the prepared test data."""
    is_source = data in list_shipped(SOURCES)  # its name stands for its rows in the prepared data
    path = PREPARED_TEST_DATA if is_source else Path(data)
    if not path.is_file():
        raise UserError(
            f"there is no file {path}",
            setting="data",
            value=data,
            remedy="make it with `loratune prepare`, or name another",
        )
    records = read_records(path)
    if is_source:
        records = [record for record in records if record.source == data]
    if not records:
        raise UserError(f"{path} has no rows of this source", setting="data", value=data)
    return records


def select_facts(records: Sequence[Record], settings: EvaluateConfig) -> tuple[list[Record], int]:
    """Return the rows with the facts that are asked for, and how many are left out: theirs are unknown.

    Rows that have no choice of facts stay as they are.
    """
    if settings.facts == "retrieved":
        return list(records), 0
    selected = [select_row_facts(record, settings.facts) for record in records]
    kept = [record for record in selected if record]
    if not any(record and record is not whole for record, whole in zip(selected, records, strict=True)):
        raise UserError(
            f"no row of `data` {settings.data} has known {settings.facts} facts",
            setting="facts",
            value=settings.facts,
            remedy="FinQA's val.jsonl has some",
        )
    if left_out := len(selected) - len(kept):
        warn(f"{left_out:,} of {len(selected):,} rows are left out: their {settings.facts} facts are unknown")
    return kept, left_out


def count_split_ids(records: Sequence[Record], settings: EvaluateConfig) -> dict[str, int]:
    """Count the ids of each task's official split; empty unless all rows are answered."""
    if min(settings.rows or len(records), settings.generate) < len(records):
        return {}
    counts = {
        name: task.count_split_ids([record for record in records if task_of(record) is task])
        for name, task in TASKS.items()
    }
    return {name: count for name, count in counts.items() if count}


def encode_records(
    records: Sequence[Record], tuned: TunedModel, max_tokens: int
) -> tuple[list[Record], list[Example], dict]:
    """Tokenise the records.

    Returns:
        The records that have room for a target, their tokens, and for each source how many were shortened
        or dropped.
    """
    limit = limit_tokens(tuned, max_tokens)
    numbered = [replace(record, id=str(number)) for number, record in enumerate(records)]
    rows, counts = tokenize_records(numbered, tuned.template, tuned.tokenizer, max_tokens=limit)
    if not rows:
        raise UserError(
            "none of the rows has room for a target", setting="max_tokens", value=limit, remedy="raise it"
        )
    if tuned.tokenizer.bos:
        say(f"Each prompt begins with the BOS token {tuned.tokenizer.bos_text}, for every model.")
    for source, count in counts.items():
        if markers_removed := format_end_markers(count):
            say(f"{source}: {markers_removed}.")
        cut = count["inputs_cut"] + count["responses_cut"] + count["dropped"]
        if cut > TOO_MANY_CUT * count["rows"]:
            warn(
                f"{source}: {cut:,} of {count['rows']:,} rows were shortened or dropped to fit in {limit:,} "
                "tokens"
            )
    markers = list_end_markers(tuned.tokenizer)
    kept = [records[int(row.id)] for row in rows]
    # Answers are compared with what a model is to write, which is the output without the marker.
    return (
        [replace(record, output=strip_end_markers(record.output, markers)) for record in kept],
        rows,
        counts,
    )


def limit_tokens(tuned: TunedModel, max_tokens: int) -> int:
    return min(max_tokens, tuned.decoder.spec.max_positions)


def evaluate_rows(
    tuned: Sequence[TunedModel],
    records: Sequence[Record],
    rows: Sequence[Example],
    settings: EvaluateConfig,
    prose: Prose,
    split_ids: dict[str, int],
) -> dict:
    """Measure the base and every adapter.

    Args:
        tuned: the adapters, which share a decoder; the first is on it.
        records: the held-out rows.
        rows: their tokens.
        settings: of the command.
        prose: plain text on which forgetting is measured.
        split_ids: the number of ids in the official split of each task whose rows are all answered.

    Returns:
        What `evaluation.json` holds of the only adapter, or of the first; then `adapters` holds all of them.
    """
    first, seed = tuned[0], settings.seed
    number_of = {id(record): number for number, record in enumerate(records)}
    answered = [number_of[id(record)] for record in draw_stratified_sample(records, settings.generate, seed)]
    constraints = (
        build_constraints([records[number] for number in answered], first.tokenizer)
        if settings.constrain
        else None
    )
    evaluation_set = build_evaluation_set(records, rows, answered, first.tokenizer, constraints, split_ids)
    windows = draw_windows(prose, first.tokenizer, first.decoder.spec.max_positions, seed)
    answering = build_answer_settings(settings)

    with without_adapter(first.decoder):
        result_cache = open_model_cache(first, None)
        baselines = measure_baselines(first, evaluation_set, rows, settings, result_cache)
        base_prose = compute_losses("base on plain text", first.decoder, windows, result_cache)
    models, parts = [], []
    for one, name in zip(tuned, name_tuned_models(len(tuned)), strict=True):
        load_adapter(one.decoder, one.adapter)
        result_cache = open_model_cache(one, one.adapter)
        model = measure_model(name, one.decoder, one.tokenizer, evaluation_set, rows, answering, result_cache)
        refuse_non_finite(model.nll, one)
        prose_nll = compute_losses(f"{name} on plain text", one.decoder, windows, result_cache)
        on_prose = compute_forgetting(windows, base_prose, prose_nll, seed)
        models.append(model)
        parts.append(
            {
                **compare_models(evaluation_set, {**baselines, "tuned": model}, seed),
                "forgetting": {"text": prose.name, "windows": len(windows), **on_prose},
                "telling": select_notable(evaluation_set, baselines["base"], model),
            }
        )
    return {
        **parts[0],
        **combine_adapters(tuned, parts),
        "examples": build_row_results(evaluation_set, baselines, models),
    }


def open_model_cache(tuned: TunedModel, adapter: Path | None) -> ResultCache:
    return load_result_cache(
        get_cache_folder(), tuned.base.content, adapter, tuned.decoder.head_weight.device.type
    )


def measure_baselines(
    tuned: TunedModel,
    evaluation_set: EvaluationSet,
    rows: Sequence[Example],
    settings: EvaluateConfig,
    result_cache: ResultCache,
) -> dict[str, ModelResult]:
    """Measure the base with the adapter's template and without one; where they are the same, only once."""
    answering = build_answer_settings(settings)
    base = measure_model(
        "base", tuned.decoder, tuned.tokenizer, evaluation_set, rows, answering, result_cache
    )
    if not settings.bare:
        return {"base": base}
    if tuned.template == WITHOUT_TEMPLATE:
        return {"base": base, "base_bare": base}
    bare = retokenize_prompts(
        evaluation_set.records,
        rows,
        WITHOUT_TEMPLATE,
        tokenizer=tuned.tokenizer,
        max_tokens=limit_tokens(tuned, settings.max_tokens),
    )
    return {
        "base": base,
        "base_bare": measure_model(
            "base without template",
            tuned.decoder,
            tuned.tokenizer,
            evaluation_set,
            bare,
            answering,
            result_cache,
        ),
    }


def name_tuned_models(count: int) -> list[str]:
    return ["tuned"] if count == 1 else [f"tuned {number}" for number in range(1, count + 1)]


def refuse_non_finite(nll: np.ndarray, tuned: TunedModel) -> None:
    if not np.isfinite(nll).all():
        raise UserError(
            "its losses are not finite numbers",
            setting="adapter",
            value=tuned.adapter,
            remedy="the adapter is broken, train it again",
        )


def combine_adapters(tuned: Sequence[TunedModel], parts: Sequence[dict]) -> dict:
    """Return `adapters` and their `spread`; nothing for a single adapter."""
    if len(parts) == 1:
        return {}
    adapters = [{"adapter": str(one.adapter), **part} for one, part in zip(tuned, parts, strict=True)]
    return {
        "adapters": adapters,
        "spread": {
            **summarize_adapters(parts),
            "forgetting": summarize_adapters([part["forgetting"] for part in parts]),
        },
    }


def collect_decoding(settings: EvaluateConfig) -> dict:
    """Return the settings that the answers depend on; nothing if no answers were written."""
    names = (
        "max_new_tokens",
        "temperature",
        "top_p",
        "top_k",
        "repetition_penalty",
        "seed",
        "samples",
        "constrain",
    )
    return {name: getattr(settings, name) for name in names} if settings.generate else {}
