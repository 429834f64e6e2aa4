"""`loratune compare`: the base and the tuned model answer the same prompts, side by side."""

import os
from collections.abc import Sequence
from pathlib import Path

from loratune import __version__
from loratune.commands.dry_run import Plan, tell
from loratune.commands.loading import Tuned, load_tuned
from loratune.config.compare import CompareSettings
from loratune.config.shared import Decoding
from loratune.data import snapshot
from loratune.data.bad_rows import raise_listed
from loratune.data.jsonl import has_lone_surrogate
from loratune.errors import UserError
from loratune.evaluation.estimate import answering_seconds
from loratune.evaluation.text_metrics import rep_4
from loratune.generation.both import answer_both
from loratune.generation.engine import Answer
from loratune.report.html import comparison_page
from loratune.report.markdown import comparison_markdown
from loratune.report.provenance import commands_of, evaluation_of, training_of, versions_of
from loratune.report.schema import Evaluation
from loratune.report.summary import Comparison
from loratune.report.terminal.comparison import show_comparison
from loratune.system.atomic import json_text, refuse_unwritable, write_together
from loratune.system.console import say, warn
from loratune.system.read import read_json
from loratune.tasks.finqa.program import result_of

FORMATS = {"html": comparison_page, "md": comparison_markdown}
FORMAT_NAMES = {"html": "page", "md": "markdown"}  # in the command's result


def run(settings: CompareSettings) -> dict:
    reports = reports_beside(settings.out, settings.format)
    prompts = read_prompts(prompts_file(settings.prompts))
    evaluation = evaluation_of(settings)
    tuned = load_tuned(settings)
    encoded = tuned.tokenizer.encode_prompts([tuned.template.parts(prompt) for prompt in prompts])
    refuse_too_long(encoded, settings, tuned.decoder.spec.max_positions)
    if settings.dry_run:
        return tell(planned(tuned.decoder, encoded, settings, reports))
    base, fine_tuned = answer_both(tuned.decoder, encoded, tuned.tokenizer.end_ids, settings)
    rows = [
        {"prompt": prompt, **sides({"fine_tuned": ours, "regular": theirs}, tuned)}
        for prompt, ours, theirs in zip(prompts, fine_tuned, base, strict=True)
    ]
    summary = {"fine_tuned": summed_up(fine_tuned), "regular": summed_up(base)}
    comparison = compared(rows, summary, evaluation, settings, tuned)
    texts = {path: FORMATS[kind](comparison) for kind, path in reports.items()}
    write_together({settings.out: json_text(rows)} | texts)
    show_comparison(rows, summary)
    say(f"Written: {' and '.join(map(str, [settings.out, *reports.values()]))}")
    written = {FORMAT_NAMES[kind]: str(path) for kind, path in reports.items()}
    return {"out": str(settings.out), **written, "prompts": len(prompts), **summary}


def planned(decoder, prompts: Sequence[list[int]], settings: CompareSettings, reports: dict[str, Path]) -> Plan:
    longest = f"{len(prompts)} prompts, two answers of at most {settings.max_new_tokens} tokens to each"
    seconds = 2 * answering_seconds(decoder, prompts, settings)
    writes = [settings.out, *reports.values()]
    return Plan({prompts_name(settings.prompts): longest}, writes, seconds, "timed on a small piece; less if answers end early")


def reports_beside(out: Path, format: str) -> dict[str, Path]:
    """Format -> file. Raises UserError, before any work is done, where no file can be written."""
    refuse_unwritable(out)
    reports = {kind: out.with_suffix(f".{kind}") for kind in FORMATS if format in (kind, "both")}
    for kind, path in reports.items():
        if path == out:
            raise UserError(f"--out {out}: name the .json file; the .{kind} report is written beside it")
        refuse_unwritable(path)
    return reports


def prompts_file(asked: Path | None) -> Path:
    """Choose the file that is asked for, else ./test.json, else, as after `pip install`, the shipped one."""
    own = Path("test.json")
    return asked or (own if os.path.lexists(own) else snapshot.PROMPTS)


def prompts_name(asked: Path | None) -> str:
    """Name the file in messages and the report, which need not say where this machine keeps its packages."""
    path = prompts_file(asked)
    return "loratune's own test.json" if path == snapshot.PROMPTS else str(path)


def read_prompts(path: Path) -> list[str]:
    """Raises UserError, naming the entries, unless the file is a JSON list of texts."""
    prompts = read_json(path)
    if not isinstance(prompts, list):
        raise UserError(f'{path}: a JSON list of texts is needed, such as ["What is a bond?"], not {kind(prompts)}')
    if not prompts:
        raise UserError(f"{path}: the list is empty; give at least one prompt")
    found = [(number, kind(prompt)) for number, prompt in enumerate(prompts, 1) if kind(prompt) != "a text"]
    raise_listed([f"{path}, entry {number}: a text is needed, not {what}" for number, what in found])
    return prompts


def kind(value) -> str:
    if isinstance(value, str):
        if has_lone_surrogate(value):
            return "one with a broken character (a lone surrogate)"
        return "a text" if value.strip() else "a blank one"
    return {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}.get(type(value), "a number")


def refuse_too_long(prompts: Sequence[Sequence[int]], settings: CompareSettings, positions: int) -> None:
    """A prompt must leave room for an answer; a shortened answer is only warned of."""
    name, most = prompts_name(settings.prompts), positions - 1
    raise_listed(
        [
            f"{name}, entry {number}: the prompt has {len(prompt):,} tokens, this model takes {most:,}; shorten it"
            for number, prompt in enumerate(prompts, 1)
            if len(prompt) > most
        ]
    )
    for number, prompt in enumerate(prompts, 1):
        if len(prompt) + settings.max_new_tokens > positions:
            warn(f"{name}, entry {number}: the model has room for only {positions - len(prompt)} tokens of an answer")


def sides(answers: dict[str, Answer], tuned: Tuned) -> dict:
    """The two texts first, then what is known of each; a program's result only where an answer is one."""
    texts = {side: tuned.tokenizer.decode(answer.ids).strip() for side, answer in answers.items()}
    row: dict = dict(texts)
    for side, answer in answers.items():
        row |= {f"{side}_tokens": len(answer.ids), f"{side}_ended": answer.ended, f"{side}_rep_4": round(rep_4(answer.ids), 4)}
        if (result := result_of(texts[side])) is not None:
            row[f"{side}_result"] = result
    return row


def summed_up(answers: Sequence[Answer]) -> dict[str, float]:
    count = len(answers)
    return {
        "eos_rate": sum(answer.ended == "eos" for answer in answers) / count,
        "mean_tokens": sum(len(answer.ids) for answer in answers) / count,
        "rep_4": sum(rep_4(answer.ids) for answer in answers) / count,
    }


def compared(
    rows: list[dict], summary: dict, evaluation: Evaluation | None, settings: CompareSettings, tuned: Tuned
) -> Comparison:
    """The answers with all that files say of the adapter."""
    training, training_counts = training_of(settings.adapter)
    counts = {"training": training_counts, "evaluation": evaluation.shortened if evaluation else {}}
    return Comparison(
        rows=rows,
        summary=summary,
        base=tuned.base.title,
        adapter=tuned.adapter,
        settings=settings_in_words(settings, tuned, evaluation),
        evaluation=evaluation,
        training=training,
        counts={data: sources for data, sources in counts.items() if sources},
        versions={"This report": f"loratune {__version__}", **versions_of(settings.adapter)},
        commands=commands_of(settings, evaluation),
    )


def settings_in_words(settings: CompareSettings, tuned: Tuned, evaluation: Evaluation | None) -> dict[str, str]:
    measured = {"Held-out data": evaluation.data, "Evaluation": str(settings.evaluation)} if evaluation else {}
    return {
        "Base model": tuned.base.title,
        "Adapter": str(tuned.adapter),
        "Template": tuned.template.name,
        "Decoding": in_words(settings),
        "Prompts": prompts_name(settings.prompts),
        **measured,
        **({"FinQA's facts": evaluation.facts} if evaluation and "execution_accuracy" in evaluation.tuned else {}),
    }


def in_words(decoding: Decoding) -> str:
    if decoding.temperature == 0:
        words = ["greedy"]
    else:
        words = [f"temperature {decoding.temperature:g}"]
        words += [f"top-k {decoding.top_k}"] if decoding.top_k else []
        words += [f"top-p {decoding.top_p:g}"] if decoding.top_p < 1 else []
        words += [f"seed {decoding.seed}"]
    words += [f"repetition penalty {decoding.repetition_penalty:g}"] if decoding.repetition_penalty != 1 else []
    return ", ".join([*words, f"at most {decoding.max_new_tokens} new tokens"])
