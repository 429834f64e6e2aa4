"""Compare the answers of the base and the tuned model to the same prompts."""

from collections.abc import Sequence
from pathlib import Path

from loratune import __version__
from loratune.api.decoding import build_answer_settings
from loratune.api.prompts import check_prompts, describe_prompt, describe_prompts_file, refuse_too_long
from loratune.api.provenance import build_command_lines, read_training_log, read_versions
from loratune.config.compare import CompareConfig
from loratune.config.options import AnyPath
from loratune.config.shared import DecodingConfig
from loratune.errors import UserError
from loratune.evaluation.result import Evaluation
from loratune.evaluation.runner import AnswerSettings
from loratune.evaluation.text_metrics import rep_4
from loratune.generation.progress import generate_with_progress
from loratune.generation.prompt_format import Prompt, PromptFormat
from loratune.generation.request import Answer, build_requests
from loratune.model import TunedModel
from loratune.report.html import render_comparison_page
from loratune.report.markdown import render_comparison_markdown
from loratune.report.summary import Comparison
from loratune.system.atomic import format_json, refuse_unwritable, write_all_atomically, write_text
from loratune.tasks.registry import find_result

RENDERERS = {"html": render_comparison_page, "md": render_comparison_markdown}


def run_comparison(
    config: CompareConfig,
    model: TunedModel,
    prompts: Sequence[Prompt],
    *,
    evaluation: Evaluation | None,
) -> Comparison:
    """Let both models answer the prompts, and collect all that files say of the adapter.

    Args:
        config: how they answer, and where the prompts and the evaluation are from.
        model: the tuned model.
        prompts: the instructions or conversations.
        evaluation: the adapter's, for the report.
    """
    base_format = choose_base_format(config, model)
    check_prompts(prompts, [model.format, base_format or model.format], config.prompts)
    refuse_too_long(model.encode(prompts), config, model.decoder.spec.max_positions)
    base, tuned = generate_base_and_tuned(
        model, prompts, build_answer_settings(config), base_format=base_format
    )
    metadata = model.adapter.metadata
    training, training_counts = read_training_log(metadata)
    counts = {"training": training_counts, "evaluation": evaluation.shortened if evaluation else {}}
    return Comparison(
        rows=[
            {**describe_prompt(prompt), **build_row({"fine_tuned": ours, "regular": theirs}, model)}
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
    prompts: Sequence[Prompt],
    settings: AnswerSettings,
    *,
    base_format: PromptFormat | None,
) -> tuple[list[Answer], list[Answer]]:
    """Generate the base's answers and the tuned model's, from one set of weights.

    Both draw the same random numbers.

    Args:
        model: the tuned model.
        prompts: the instructions or conversations.
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
