"""`loratune compare`: the base and the tuned model answer the same prompts, side by side."""

import os
from collections.abc import Sequence
from pathlib import Path

from loratune import __version__
from loratune.commands.decoding import build_answer_settings
from loratune.commands.dry_run import TIMING, Plan, show_plan
from loratune.commands.loading import TunedModel, load_tuned_model
from loratune.commands.provenance import (
    build_command_lines,
    find_evaluation,
    read_training_log,
    read_versions,
)
from loratune.config.compare import CompareConfig
from loratune.config.shared import DecodingConfig
from loratune.data import snapshot
from loratune.data.bad_rows import raise_problems
from loratune.data.jsonl import has_lone_surrogate
from loratune.errors import UserError
from loratune.evaluation.estimate import estimate_answering_seconds
from loratune.evaluation.runner import AnswerSettings
from loratune.evaluation.text_metrics import rep_4
from loratune.generation.progress import generate_with_progress
from loratune.generation.request import Answer, build_requests
from loratune.models.lora import without_adapter
from loratune.report.html import render_comparison_page
from loratune.report.markdown import render_comparison_markdown
from loratune.report.schema import Evaluation
from loratune.report.summary import Comparison
from loratune.report.terminal.comparison import show_comparison
from loratune.system.atomic import format_json, refuse_unwritable, write_all_atomically
from loratune.system.console import console, say, warn
from loratune.system.read import read_json
from loratune.tasks.registry import find_result

RENDERERS = {"html": render_comparison_page, "md": render_comparison_markdown}
RESULT_KEYS = {"html": "page", "md": "markdown"}  # in the command's result


def run(settings: CompareConfig) -> dict:
    reports = choose_report_paths(settings.out, settings.format)
    prompts = read_prompts(choose_prompts_file(settings.prompts))
    evaluation = find_evaluation(settings)
    tuned = load_tuned_model(settings)
    encoded = tuned.tokenizer.encode_prompts([tuned.template.split_prompt(prompt) for prompt in prompts])
    refuse_too_long(encoded, settings, tuned.decoder.spec.max_positions)
    if settings.dry_run:
        return show_plan(plan_comparison(tuned.decoder, encoded, settings, reports))
    base, fine_tuned = generate_base_and_tuned(tuned, encoded, build_answer_settings(settings))
    rows = [
        {"prompt": prompt, **build_row({"fine_tuned": ours, "regular": theirs}, tuned)}
        for prompt, ours, theirs in zip(prompts, fine_tuned, base, strict=True)
    ]
    summary = {"fine_tuned": summarise_answers(fine_tuned), "regular": summarise_answers(base)}
    comparison = build_comparison(rows, summary, evaluation, settings, tuned)
    texts = {path: RENDERERS[kind](comparison) for kind, path in reports.items()}
    write_all_atomically({settings.out: format_json(rows)} | texts)
    show_comparison(rows, summary)
    say(f"Written: {' and '.join(map(str, [settings.out, *reports.values()]))}")
    written = {RESULT_KEYS[kind]: str(path) for kind, path in reports.items()}
    return {"out": str(settings.out), **written, "prompts": len(prompts), **summary}


def generate_base_and_tuned(
    tuned: TunedModel, prompts: Sequence[list[int]], settings: AnswerSettings
) -> tuple[list[Answer], list[Answer]]:
    """Generate the base's answers and the tuned model's, from one set of weights with the same random
    numbers.
    """
    requests = build_requests(prompts, settings.decoding)
    how = {"end_ids": tuned.tokenizer.end_ids, "batch_size": settings.batch_size}
    with without_adapter(tuned.decoder):
        base = generate_with_progress("base answers ", tuned.decoder, requests, **how)
    return base, generate_with_progress("tuned answers", tuned.decoder, requests, **how)


def plan_comparison(
    decoder, prompts: Sequence[list[int]], settings: CompareConfig, reports: dict[str, Path]
) -> Plan:
    longest = f"{len(prompts)} prompts, two answers of at most {settings.max_new_tokens} tokens to each"
    with console.status(TIMING):
        seconds = 2 * estimate_answering_seconds(decoder, prompts, build_answer_settings(settings))
    writes = [settings.out, *reports.values()]
    return Plan(
        {describe_prompts_file(settings.prompts): longest},
        writes,
        seconds,
        "timed on a small piece; less if answers end early",
    )


def choose_report_paths(out: Path, report_format: str) -> dict[str, Path]:
    """Format -> file. Raises UserError, before any work is done, where no file can be written."""
    refuse_unwritable(out)
    reports = {kind: out.with_suffix(f".{kind}") for kind in RENDERERS if report_format in (kind, "both")}
    for kind, path in reports.items():
        if path == out:
            raise UserError(f"--out {out}: name the .json file; the .{kind} report is written beside it")
        refuse_unwritable(path)
    return reports


def choose_prompts_file(asked: Path | None) -> Path:
    """Choose the file that is asked for, else ./test.json, else, as after `pip install`, the shipped one."""
    own = Path("test.json")
    return asked or (own if os.path.lexists(own) else snapshot.PROMPTS)


def describe_prompts_file(asked: Path | None) -> str:
    """Name the file in messages and the report, which need not say where this machine keeps its packages."""
    path = choose_prompts_file(asked)
    return "loratune's own test.json" if path == snapshot.PROMPTS else str(path)


def read_prompts(path: Path) -> list[str]:
    """Raises UserError, naming the entries, unless the file is a JSON list of texts."""
    prompts = read_json(path)
    if not isinstance(prompts, list):
        raise UserError(
            f'{path}: a JSON list of texts is needed, such as ["What is a bond?"], not '
            f"{describe_kind(prompts)}"
        )
    if not prompts:
        raise UserError(f"{path}: the list is empty; give at least one prompt")
    found = [
        (number, describe_kind(prompt))
        for number, prompt in enumerate(prompts, 1)
        if describe_kind(prompt) != "a text"
    ]
    raise_problems([f"{path}, entry {number}: a text is needed, not {what}" for number, what in found])
    return prompts


def describe_kind(value) -> str:
    if isinstance(value, str):
        if has_lone_surrogate(value):
            return "one with a broken character (a lone surrogate)"
        return "a text" if value.strip() else "a blank one"
    return {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}.get(
        type(value), "a number"
    )


def refuse_too_long(prompts: Sequence[Sequence[int]], settings: CompareConfig, positions: int) -> None:
    """A prompt must leave room for an answer; a shortened answer is only warned of."""
    name, most = describe_prompts_file(settings.prompts), positions - 1
    raise_problems(
        [
            f"{name}, entry {number}: the prompt has {len(prompt):,} tokens, this model takes {most:,}; "
            "shorten it"
            for number, prompt in enumerate(prompts, 1)
            if len(prompt) > most
        ]
    )
    for number, prompt in enumerate(prompts, 1):
        if len(prompt) + settings.max_new_tokens > positions:
            warn(
                f"{name}, entry {number}: the model has room for only {positions - len(prompt)} tokens of an "
                "answer"
            )


def build_row(answers: dict[str, Answer], tuned: TunedModel) -> dict:
    """The two texts first, then what is known of each; a program's result only where an answer is one."""
    texts = {side: tuned.tokenizer.decode(answer.ids).strip() for side, answer in answers.items()}
    row: dict = dict(texts)
    for side, answer in answers.items():
        row |= {
            f"{side}_tokens": len(answer.ids),
            f"{side}_ended": answer.ended,
            f"{side}_rep_4": round(rep_4(answer.ids), 4),
        }
        if (result := find_result(texts[side])) is not None:
            row[f"{side}_result"] = result
    return row


def summarise_answers(answers: Sequence[Answer]) -> dict[str, float]:
    count = len(answers)
    return {
        "eos_rate": sum(answer.ended == "eos" for answer in answers) / count,
        "mean_tokens": sum(len(answer.ids) for answer in answers) / count,
        "rep_4": sum(rep_4(answer.ids) for answer in answers) / count,
    }


def build_comparison(
    rows: list[dict], summary: dict, evaluation: Evaluation | None, settings: CompareConfig, tuned: TunedModel
) -> Comparison:
    """The answers with all that files say of the adapter."""
    training, training_counts = read_training_log(settings.adapter)
    counts = {"training": training_counts, "evaluation": evaluation.shortened if evaluation else {}}
    return Comparison(
        rows=rows,
        summary=summary,
        base=tuned.base.title,
        adapter=tuned.adapter,
        settings=describe_settings(settings, tuned, evaluation),
        evaluation=evaluation,
        training=training,
        counts={data: sources for data, sources in counts.items() if sources},
        versions={"This report": f"loratune {__version__}", **read_versions(settings.adapter)},
        commands=build_command_lines(settings, evaluation),
    )


def describe_settings(
    settings: CompareConfig, tuned: TunedModel, evaluation: Evaluation | None
) -> dict[str, str]:
    measured = (
        {"Held-out data": evaluation.data, "Evaluation": str(settings.evaluation)} if evaluation else {}
    )
    return {
        "Base model": tuned.base.title,
        "Adapter": str(tuned.adapter),
        "Template": tuned.template.name,
        "Decoding": describe_decoding(settings),
        "Prompts": describe_prompts_file(settings.prompts),
        **measured,
        **(
            {"FinQA's facts": evaluation.facts}
            if evaluation and "execution_accuracy" in evaluation.tuned
            else {}
        ),
    }


def describe_decoding(decoding: DecodingConfig) -> str:
    if decoding.temperature == 0:
        words = ["greedy"]
    else:
        words = [f"temperature {decoding.temperature:g}"]
        words += [f"top-k {decoding.top_k}"] if decoding.top_k else []
        words += [f"top-p {decoding.top_p:g}"] if decoding.top_p < 1 else []
        words += [f"seed {decoding.seed}"]
    words += (
        [f"repetition penalty {decoding.repetition_penalty:g}"] if decoding.repetition_penalty != 1 else []
    )
    return ", ".join([*words, f"at most {decoding.max_new_tokens} new tokens"])
