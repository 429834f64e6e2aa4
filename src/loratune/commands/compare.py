"""`loratune compare`: the base and the tuned model answer the same prompts, side by side."""

from collections.abc import Sequence
from pathlib import Path

from loratune.api.compare import choose_report_paths, run_comparison, write_comparison
from loratune.api.decoding import build_answer_settings
from loratune.api.load import load_for
from loratune.api.prompts import choose_prompts_file, describe_prompts_file, read_prompts, refuse_too_long
from loratune.api.provenance import find_evaluation
from loratune.commands.dry_run import TIMING, Plan, show_plan
from loratune.config.compare import CompareConfig
from loratune.evaluation.estimate import estimate_answering_seconds
from loratune.models.decoder import Decoder
from loratune.report.terminal.comparison import show_comparison
from loratune.system.console import console, say

RESULT_KEYS = {"html": "page", "md": "markdown"}  # in the command's result


def run(config: CompareConfig) -> dict:
    reports = choose_report_paths(config.out, config.format)
    prompts = read_prompts(choose_prompts_file(config.prompts))
    evaluation = find_evaluation(config)
    model = load_for(config)
    if config.dry_run:
        encoded = model.encode(prompts)
        refuse_too_long(encoded, config, model.decoder.spec.max_positions)
        return show_plan(plan_comparison(model.decoder, encoded, config, reports=reports))
    comparison = run_comparison(config, model, prompts, evaluation=evaluation)
    write_comparison(comparison, config.out, reports=reports)
    show_comparison(comparison.rows, comparison.summary)
    say(f"Written: {' and '.join(map(str, [config.out, *reports.values()]))}")
    written = {RESULT_KEYS[kind]: str(path) for kind, path in reports.items()}
    return {"out": str(config.out), **written, "prompts": len(prompts), **comparison.summary}


def plan_comparison(
    decoder: Decoder, prompts: Sequence[list[int]], config: CompareConfig, *, reports: dict[str, Path]
) -> Plan:
    longest = f"{len(prompts)} prompts, two answers of at most {config.max_new_tokens} tokens to each"
    with console.status(TIMING):
        seconds = 2 * estimate_answering_seconds(decoder, prompts, build_answer_settings(config))
    writes = [config.out, *reports.values()]
    return Plan(
        {describe_prompts_file(config.prompts): longest},
        writes,
        seconds,
        "timed on a small piece; less if answers end early",
    )
