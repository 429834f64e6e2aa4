"""`loratune prepare`: training, validation and test data from shipped data, the hub or one's own files."""

import time
from collections.abc import Sequence

from loratune.api.prepare import build_source_options, check_preparation, find_data_sets, run_preparation
from loratune.commands.dry_run import Plan, show_plan
from loratune.config.prepare import PrepareConfig
from loratune.data.sample import draw_stratified_sample
from loratune.data.sources.base import Survey
from loratune.data.split import SPLITS
from loratune.data.template import PromptTemplate
from loratune.data.tokenize import tokenize_records
from loratune.models.tokenizer import Tokenizer
from loratune.report.terminal.prepared import show_summary
from loratune.system.console import say
from loratune.tasks.registry import TASKS

OUTPUT_FILES = (*(f"{split}.jsonl" for split in SPLITS), "prepare_report.json")
TIMED_ROWS = 256  # rows of each source whose tokens are counted for an estimate


def run(settings: PrepareConfig) -> dict:
    preparation = check_preparation(settings)
    if settings.dry_run:
        surveys = survey_all(settings, preparation.tokenizer, preparation.template)
        plan = plan_preparation(settings, surveys, preparation.template, tokenizer=preparation.tokenizer)
        return show_plan(plan)
    report = run_preparation(preparation).report
    task_lines = [line for task in TASKS.values() for line in task.explain_report(report)]
    show_summary(report, settings.out, task_lines)
    if shared := report["in_held_out_files"]:
        say(
            "Rows that are in your own files for val or test, too, and are therefore not trained on: "
            f"{shared:,}"
        )
    return report


def plan_preparation(
    settings: PrepareConfig, surveys: Sequence[Survey], template: PromptTemplate, *, tokenizer: Tokenizer
) -> Plan:
    """Estimate the time by counting the tokens of some rows of each source."""
    reads = {
        one.name: f"{one.origin}, {'not downloaded yet' if one.rows is None else f'{one.rows:,} rows'}"
        for one in surveys
    }
    writes = [settings.out / name for name in OUTPUT_FILES]
    if any(one.rows is None for one in surveys):
        return Plan(reads, writes, None, "it depends on the download")
    seconds = sum(
        one.seconds + estimate_encoding_seconds(one, template, tokenizer, max_tokens=settings.max_tokens)
        for one in surveys
    )
    return Plan(reads, writes, seconds, "timed on some of the rows")


def estimate_encoding_seconds(
    survey: Survey, template: PromptTemplate, tokenizer: Tokenizer, *, max_tokens: int
) -> float:
    some = draw_stratified_sample(survey.sample, TIMED_ROWS, seed=0)
    started = time.perf_counter()
    tokenize_records(some, template, tokenizer, max_tokens=max_tokens)
    return (time.perf_counter() - started) * (survey.rows or 0) / max(len(some), 1)


def survey_all(settings: PrepareConfig, tokenizer: Tokenizer, template: PromptTemplate) -> list[Survey]:
    """Survey what each data set holds, without a download."""
    options = build_source_options(settings, tokenizer, template)
    return [data_set.source.survey(data_set, options) for data_set in find_data_sets(settings)]
