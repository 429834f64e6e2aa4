"""`loratune compare`: the base and the tuned model answer the same prompts, side by side."""

from collections.abc import Sequence
from pathlib import Path

from loratune.commands.loading import Tuned, load_tuned
from loratune.console import say, warn
from loratune.data.records import has_lone_surrogate
from loratune.errors import UserError
from loratune.evaluation.finqa import result_of
from loratune.evaluation.text import rep_4
from loratune.files import read_json, refuse_unwritable, write_json, write_text
from loratune.generation.both import answer_both
from loratune.generation.decode import Answer
from loratune.report.comparison import comparison_page, show_comparison
from loratune.settings import CompareSettings, Decoding

LISTED = 20  # problems that are named before the rest is left out


def run(settings: CompareSettings) -> dict:
    page = page_beside(settings.out)
    prompts = read_prompts(settings.prompts)
    tuned = load_tuned(settings)
    encoded = [tuned.tokenizer.encode(tuned.template.render(prompt)) for prompt in prompts]
    refuse_too_long(encoded, settings, tuned.decoder.spec.max_positions)
    base, fine_tuned = answer_both(tuned.decoder, encoded, tuned.tokenizer.eos_id, settings)
    rows = [
        {"prompt": prompt, **sides({"fine_tuned": ours, "regular": theirs}, tuned)}
        for prompt, ours, theirs in zip(prompts, fine_tuned, base, strict=True)
    ]
    summary = {"fine_tuned": summed_up(fine_tuned), "regular": summed_up(base)}
    write_json(settings.out, rows)
    write_text(page, comparison_page(rows, summary, footer(settings, tuned)))
    show_comparison(rows, summary)
    say(f"Written: {settings.out} and {page}")
    return {"out": str(settings.out), "page": str(page), "prompts": len(prompts), **summary}


def page_beside(out: Path) -> Path:
    """Raises UserError, before any work is done, where no file can be written."""
    refuse_unwritable(out)
    page = out.with_suffix(".html")
    if page == out:
        raise UserError(f"--out {out}: name the .json file; the .html page is written beside it")
    refuse_unwritable(page)
    return page


def read_prompts(path: Path) -> list[str]:
    """Raises UserError, naming the entries, unless the file is a JSON list of texts."""
    prompts = read_json(path)
    if not isinstance(prompts, list):
        raise UserError(f'{path}: a JSON list of texts is needed, such as ["What is a bond?"], not {kind(prompts)}')
    if not prompts:
        raise UserError(f"{path}: the list is empty; give at least one prompt")
    found = [(number, kind(prompt)) for number, prompt in enumerate(prompts, 1) if kind(prompt) != "a text"]
    if found:
        raise UserError(*(f"{path}, entry {number}: a text is needed, not {what}" for number, what in found[:LISTED]))
    return prompts


def kind(value) -> str:
    if isinstance(value, str):
        if has_lone_surrogate(value):
            return "one with a broken character (a lone surrogate)"
        return "a text" if value.strip() else "a blank one"
    return {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}.get(type(value), "a number")


def refuse_too_long(prompts: Sequence[Sequence[int]], settings: CompareSettings, positions: int) -> None:
    """A prompt must leave room for an answer; a shortened answer is only warned of."""
    most = positions - 1
    if problems := [
        f"{settings.prompts}, entry {number}: the prompt has {len(prompt):,} tokens, this model takes {most:,}; shorten it"
        for number, prompt in enumerate(prompts, 1)
        if len(prompt) > most
    ]:
        raise UserError(*problems[:LISTED])
    for number, prompt in enumerate(prompts, 1):
        if len(prompt) + settings.max_new_tokens > positions:
            warn(f"{settings.prompts}, entry {number}: the model has room for only {positions - len(prompt)} tokens of an answer")


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


def footer(settings: CompareSettings, tuned: Tuned) -> dict[str, str]:
    return {
        "Base model": tuned.base_name,
        "Adapter": str(tuned.adapter),
        "Template": tuned.template.name,
        "Decoding": in_words(settings),
        "Prompts": str(settings.prompts),
    }


def in_words(decoding: Decoding) -> str:
    length = f"at most {decoding.max_new_tokens} new tokens"
    if decoding.temperature == 0:
        return f"greedy, {length}"
    limits = [f"temperature {decoding.temperature:g}"]
    limits += [f"top-k {decoding.top_k}"] if decoding.top_k else []
    limits += [f"top-p {decoding.top_p:g}"] if decoding.top_p < 1 else []
    return f"{', '.join(limits)}, seed {decoding.seed}, {length}"
