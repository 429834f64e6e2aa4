"""Compare the answers of the base and the tuned model to the same prompts."""

import os
from collections.abc import Sequence
from pathlib import Path

from loratune import __version__
from loratune.api.decoding import build_answer_settings
from loratune.api.provenance import build_command_lines, read_training_log, read_versions
from loratune.config.compare import CompareConfig
from loratune.config.options import AnyPath
from loratune.config.shared import DecodingConfig
from loratune.data import snapshot
from loratune.data.bad_rows import raise_problems
from loratune.data.json_values import has_lone_surrogate
from loratune.errors import UserError
from loratune.evaluation.result import Evaluation
from loratune.evaluation.runner import AnswerSettings
from loratune.evaluation.text_metrics import rep_4
from loratune.generation.progress import generate_with_progress
from loratune.generation.request import Answer, build_requests
from loratune.model import PromptFormat, TunedModel
from loratune.report.html import render_comparison_page
from loratune.report.markdown import render_comparison_markdown
from loratune.report.summary import Comparison
from loratune.system.atomic import format_json, refuse_unwritable, write_all_atomically, write_text
from loratune.system.messages import warn
from loratune.system.read import read_json
from loratune.tasks.registry import find_result

RENDERERS = {"html": render_comparison_page, "md": render_comparison_markdown}


def run_comparison(
    config: CompareConfig,
    model: TunedModel,
    prompts: Sequence[str],
    *,
    evaluation: Evaluation | None,
) -> Comparison:
    """Let both models answer the prompts, and collect all that files say of the adapter.

    Args:
        config: how they answer, and where the prompts and the evaluation are from.
        model: the tuned model.
        prompts: the instructions.
        evaluation: the adapter's, for the report.
    """
    base_format = choose_base_format(config, model)
    refuse_too_long(model.encode(prompts), config, model.decoder.spec.max_positions)
    base, tuned = generate_base_and_tuned(
        model, prompts, build_answer_settings(config), base_format=base_format
    )
    metadata = model.adapter.metadata
    training, training_counts = read_training_log(metadata)
    counts = {"training": training_counts, "evaluation": evaluation.shortened if evaluation else {}}
    return Comparison(
        rows=[
            {"prompt": prompt, **build_row({"fine_tuned": ours, "regular": theirs}, model)}
            for prompt, ours, theirs in zip(prompts, tuned, base, strict=True)
        ],
        summary={"fine_tuned": summarize_answers(tuned), "regular": summarize_answers(base)},
        base=model.resolved.title,
        adapter=model.adapter.folder,
        settings=describe_settings(config, model, evaluation),
        evaluation=evaluation,
        training=training,
        counts={data: sources for data, sources in counts.items() if sources},
        versions={"This report": f"loratune {__version__}", **read_versions(metadata)},
        commands=build_command_lines(config, metadata, evaluation),
    )


def write_report(comparison: Comparison, path: AnyPath) -> Path:
    """Write a comparison as a page (.html), as Markdown (.md), or its answers as JSON (.json).

    Raises:
        UserError: the ending is another one, or the file cannot be written.
    """
    path = Path(path)
    kind = path.suffix.removeprefix(".")
    if kind not in (*RENDERERS, "json"):
        raise UserError(f"{path}: the name must end with .html, .md or .json")
    refuse_unwritable(path)
    text = format_json(comparison.rows) if kind == "json" else RENDERERS[kind](comparison)
    write_text(path, text)
    return path


def write_comparison(comparison: Comparison, out: Path, *, reports: dict[str, Path]) -> None:
    """Write the answers as JSON and the reports, all or none.

    Args:
        comparison: what is written.
        out: the JSON file.
        reports: html or md -> the file.
    """
    texts = {path: RENDERERS[kind](comparison) for kind, path in reports.items()}
    write_all_atomically({out: format_json(comparison.rows)} | texts)


def choose_base_format(config: CompareConfig, model: TunedModel) -> PromptFormat | None:
    """Return the base's own chat template, if it is to be asked in it; None: in the adapter's template."""
    return model.own_format if config.base_template == "own" else None


def generate_base_and_tuned(
    model: TunedModel,
    prompts: Sequence[str],
    settings: AnswerSettings,
    *,
    base_format: PromptFormat | None,
) -> tuple[list[Answer], list[Answer]]:
    """Generate the base's answers and the tuned model's, from one set of weights.

    Both draw the same random numbers.

    Args:
        model: the tuned model.
        prompts: the instructions.
        settings: how both answer.
        base_format: the base's own chat template; None: the base is asked in the adapter's template.
    """
    tuned_prompts, tokenizer = model.encode(prompts), model.tokenizer
    base_prompts, base_tokenizer = tuned_prompts, tokenizer
    if base_format:
        base_tokenizer, base_prompts = base_format.tokenizer, base_format.encode(prompts)
    with model.base():
        base = generate_with_progress(
            "base answers ",
            model.decoder,
            build_requests(base_prompts, settings.decoding),
            end_ids=base_tokenizer.end_ids,
            batch_size=settings.batch_size,
        )
    tuned = generate_with_progress(
        "tuned answers",
        model.decoder,
        build_requests(tuned_prompts, settings.decoding),
        end_ids=tokenizer.end_ids,
        batch_size=settings.batch_size,
    )
    return base, tuned


def choose_report_paths(out: Path, report_format: str) -> dict[str, Path]:
    """Return the report's file for each format.

    Raises:
        UserError: a file cannot be written; found before any work is done.
    """
    refuse_unwritable(out)
    reports = {kind: out.with_suffix(f".{kind}") for kind in RENDERERS if report_format in (kind, "both")}
    for kind, path in reports.items():
        if path == out:
            raise UserError(
                "name the .json file",
                setting="out",
                value=out,
                remedy=f"the .{kind} report is written beside it",
            )
        refuse_unwritable(path)
    return reports


def choose_prompts_file(path: Path | None) -> Path:
    """Return the file that is asked for, else ./test.json, else, as after `pip install`, the shipped one."""
    own = Path("test.json")
    if path is not None:
        return path
    return own if os.path.lexists(own) else snapshot.PROMPTS


def describe_prompts_file(chosen: Path | None) -> str:
    """Name the file in messages and the report, which need not say where this machine keeps its packages."""
    path = choose_prompts_file(chosen)
    return "loratune's own test.json" if path == snapshot.PROMPTS else str(path)


def read_prompts(path: Path) -> list[str]:
    """Read a JSON list of texts.

    Raises:
        UserError: the file is something else; each wrong entry is named.
    """
    prompts = read_json(path)
    if not isinstance(prompts, list):
        raise UserError(
            f'{path}: a JSON list of texts is needed, such as ["What is a bond?"], not '
            f"{describe_kind(prompts)}"
        )
    if not prompts:
        raise UserError(f"{path}: the list is empty; give at least one prompt")
    wrong = [
        (number, describe_kind(prompt))
        for number, prompt in enumerate(prompts, 1)
        if describe_kind(prompt) != "a text"
    ]
    raise_problems([f"{path}, entry {number}: a text is needed, not {what}" for number, what in wrong])
    return prompts


def describe_kind(value) -> str:
    if isinstance(value, str):
        if has_lone_surrogate(value):
            return "one with a broken character (a lone surrogate)"
        return "a text" if value.strip() else "a blank one"
    return {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}.get(
        type(value), "a number"
    )


def refuse_too_long(prompts: Sequence[Sequence[int]], config: CompareConfig, positions: int) -> None:
    """Raise UserError for prompts that leave no room for an answer; warn of those that shorten it."""
    name, most = describe_prompts_file(config.prompts), positions - 1
    raise_problems(
        [
            f"{name}, entry {number}: the prompt has {len(prompt):,} tokens, this model takes {most:,}; "
            "shorten it"
            for number, prompt in enumerate(prompts, 1)
            if len(prompt) > most
        ]
    )
    for number, prompt in enumerate(prompts, 1):
        if len(prompt) + config.max_new_tokens > positions:
            warn(
                f"{name}, entry {number}: the model has room for only {positions - len(prompt)} tokens of an "
                "answer"
            )


def build_row(answers: dict[str, Answer], model: TunedModel) -> dict:
    """Return both answers and what is known of each; a result only where the answer is a program."""
    texts = {side: model.decode(answer.ids) for side, answer in answers.items()}
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


def summarize_answers(answers: Sequence[Answer]) -> dict[str, float]:
    count = len(answers)
    return {
        "eos_rate": sum(answer.ended == "eos" for answer in answers) / count,
        "mean_tokens": sum(len(answer.ids) for answer in answers) / count,
        "rep_4": sum(rep_4(answer.ids) for answer in answers) / count,
    }


def describe_settings(
    config: CompareConfig, model: TunedModel, evaluation: Evaluation | None
) -> dict[str, str]:
    measured = {"Held-out data": evaluation.data, "Evaluation": str(config.evaluation)} if evaluation else {}
    return {
        "Base model": model.resolved.title,
        "Adapter": str(model.adapter.folder),
        "Template": model.template.name,
        **({"Base asked in": "its own chat template"} if choose_base_format(config, model) else {}),
        "Decoding": describe_decoding(config),
        "Prompts": describe_prompts_file(config.prompts),
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
