"""The prompts that models are compared on: instructions and conversations, from a JSON file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loratune.config.compare import CompareConfig
from loratune.data import snapshot
from loratune.data.bad_rows import raise_problems
from loratune.data.conversation import check_prompt, format_turn
from loratune.data.json_values import describe_type, has_lone_surrogate
from loratune.errors import UserError
from loratune.generation.prompt_format import Prompt, PromptFormat
from loratune.system.messages import warn
from loratune.system.read import read_json

EXAMPLE = '["What is a bond?"]'


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


def read_prompts(path: Path) -> list[Prompt]:
    """Read a JSON list of texts, and of conversations: lists of messages, or objects with `messages`.

    Raises:
        UserError: the file is something else; each wrong entry is named.
    """
    entries = read_json(path)
    if not isinstance(entries, list):
        raise UserError(
            f"{path}: a JSON list of texts is needed, such as {EXAMPLE}, not {describe_type(entries)}"
        )
    if not entries:
        raise UserError(f"{path}: the list is empty; give at least one prompt")
    prompts: list[Prompt] = []
    problems = []
    for number, entry in enumerate(entries, 1):
        try:
            prompts.append(parse_prompt(entry))
        except ValueError as error:
            problems.append(f"{path}, entry {number}: {error}")
    raise_problems(problems)
    return prompts


def parse_prompt(entry: Any) -> Prompt:
    """Return an instruction, or the messages of a conversation that waits for an answer.

    Raises:
        ValueError: the entry is neither.
    """
    if isinstance(entry, dict) and "messages" in entry:
        entry = entry["messages"]
    if isinstance(entry, list):
        check_prompt(entry)
        return entry
    if not isinstance(entry, str):
        raise ValueError(f"a text or a list of messages is needed, not {describe_type(entry)}")
    if has_lone_surrogate(entry):
        raise ValueError("a text is needed, not one with a broken character (a lone surrogate)")
    if not entry.strip():
        raise ValueError("a text is needed, not a blank one")
    return entry


def describe_prompt(prompt: Prompt) -> dict[str, Any]:
    """Return a prompt as a result file holds it: as text, and a conversation's messages, too."""
    if isinstance(prompt, str):
        return {"prompt": prompt}
    return {"prompt": "\n".join(map(format_turn, prompt)), "messages": [dict(one) for one in prompt]}


def check_prompts(prompts: Sequence[Prompt], formats: Sequence[PromptFormat], path: Path | None) -> None:
    """Raise UserError for prompts that a template cannot show; each is named."""
    problems = []
    for number, prompt in enumerate(prompts, 1):
        try:
            for one in formats:
                one.split(prompt)
        except UserError as error:
            name = describe_prompts_file(path)
            problems += [f"{name}, entry {number}: {problem.quote()}" for problem in error.details]
    raise_problems(list(dict.fromkeys(problems)))


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
