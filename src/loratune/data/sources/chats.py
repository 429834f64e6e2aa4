"""Chats in a user's file: convert messages in OpenAI's, ShareGPT's and TRL's forms to one record each.

A record has one instruction and one output, so one answer of each chat is learned: the last one that is not
marked with weight 0. The turns before it are the input, as `System: ...`, `User: ...` and `Assistant: ...`;
`meta["turn_starts"]` says where in that text each turn begins, so that a chat that is too long loses whole
turns.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loratune.data.example import Record
from loratune.data.json_values import describe_type, require_object
from loratune.data.sources.columns import find_columns
from loratune.data.sources.readers import FileRow
from loratune.data.sources.values import is_blank, read_cell
from loratune.data.truncation import TURN_STARTS
from loratune.system.read import parse_json

# Columns that hold a chat, the likeliest first.
CHAT_COLUMN_NAMES = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat")
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
TOOL_ROLES = ("tool", "tool_call", "tool_response", "function", "function_call", "observation", "ipython")
TOOL_CALL_FIELDS = ("tool_calls", "function_call")
# An answer with 0 or false in one of these is not learned (OpenAI and Axolotl, Together, verl, ms-swift).
TRAIN_FLAGS = ("weight", "train", "trainable", "loss_mask", "loss")
NO_TOOLS = "tool calls and their results cannot be learned from"

# How answers and turns were handled, as the report says it.
CONTEXT_ONLY = "answers used as context only"
WEIGHT_0 = "answers marked with weight 0, not learned"
AFTER_LAST_ANSWER = "turns after the last learned answer, left out"
ALL_WEIGHT_0 = "chats whose answers all have weight 0"


@dataclass(frozen=True)
class Turn:
    role: str  # system, user or assistant
    text: str
    trained_on: bool  # whether it is an answer that may be trained on

    def __str__(self) -> str:
        return f"{self.role.capitalize()}: {self.text}"


@dataclass(frozen=True)
class ChatColumns:
    """The columns that hold a chat: one with all its messages, or a prompt's messages and a completion's."""

    prompt: str  # "" where `answer` has all messages
    answer: str


def find_chat_columns(
    rows: Sequence[FileRow], names: Sequence[str], requested: Mapping[str, str]
) -> ChatColumns | None:
    """Return the columns that hold chats; None without any, or if the user names instruction or output."""
    if "messages" in requested:
        return ChatColumns("", requested["messages"])
    if requested.keys() & {"instruction", "output"}:
        return None
    for name in find_columns(CHAT_COLUMN_NAMES, names):
        if name == "messages" or has_messages(rows, name):
            return ChatColumns("", name)
    prompts, completions = find_columns(("prompt",), names), find_columns(("completion",), names)
    if prompts and completions and (has_messages(rows, prompts[0]) or has_messages(rows, completions[0])):
        return ChatColumns(prompts[0], completions[0])
    return None


def has_messages(rows: Sequence[FileRow], name: str) -> bool:
    """Tell whether the first cell that is not empty is a list of objects, perhaps as JSON text."""
    value = next((row.values.get(name) for row in rows if not is_blank(row.values.get(name))), None)
    try:
        value = parse_json_list(value)
    except ValueError:
        return False
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) for turn in value)


def parse_json_list(value: Any) -> Any:
    """Parse a list that is JSON text, as in CSV or Parquet; return other values unchanged."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return parse_json(value)
        except (json.JSONDecodeError, RecursionError):
            return value
    return value


def convert_chat(values: dict, columns: ChatColumns, source: str, *, counts: Counter[str]) -> Record | None:
    """Convert a row's chat to a record.

    Args:
        values: the row.
        columns: the columns that hold the chat.
        source: the record's source.
        counts: is updated with how the chat's turns were handled.

    Returns:
        The record; None where no answer is to be learned.

    Raises:
        ValueError: a record cannot hold the chat; the text names the message.
    """
    completion = read_turns(values, columns.answer, "assistant")
    prompt = read_turns(values, columns.prompt, "user") if columns.prompt else []
    turns = [*(Turn(turn.role, turn.text, trained_on=False) for turn in prompt), *completion]
    answers = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
    learned = [number for number in answers if turns[number].trained_on]
    if not answers or (learned and "user" not in {turn.role for turn in turns[: learned[-1]]}):
        raise ValueError(f"{columns.answer} has no user turn that the assistant answers")
    last = learned[-1] if learned else 0
    if learned and turns[last - 1].role == "assistant":
        raise ValueError(
            f"{columns.answer}, number {last + 1 - len(prompt)}: an answer that follows another one; join "
            "them into one message"
        )
    counts[WEIGHT_0] += sum(not turn.trained_on for turn in completion if turn.role == "assistant")
    if not learned:
        return None
    question = max(number for number in range(last) if turns[number].role == "user")
    counts[CONTEXT_ONLY] += sum(number < last for number in answers)
    counts[AFTER_LAST_ANSWER] += len(turns) - 1 - last
    context = [turn for number, turn in enumerate(turns[:last]) if number != question]
    texts = [f"{turn}" for turn in context]
    starts = [sum(len(text) + 1 for text in texts[:number]) for number in range(len(texts))]
    meta = {TURN_STARTS: starts} if starts else {}
    return Record(turns[question].text, "\n".join(texts), turns[last].text, "", source, meta=meta)


def read_turns(values: dict, name: str, role: str) -> list[Turn]:
    """Read the messages of a cell; a plain text is one message of `role`.

    Raises:
        ValueError: a message is unusable; the text names it.
    """
    value = parse_json_list(values.get(name))
    if isinstance(value, str) and name != "messages":
        return [Turn(role, read_cell(values, name), trained_on=role == "assistant")]
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} must be a list of role and content, not {describe_type(value)}")
    turns = []
    for number, turn in enumerate(value, 1):
        try:
            turns.append(read_turn(require_object(turn)))
        except ValueError as error:
            raise ValueError(f"{name}, number {number}: {error}") from error
    return turns


def read_turn(message: dict) -> Turn:
    """Read a message with role and content (OpenAI) or from and value (ShareGPT)."""
    role_name, text_name = (
        ("from", "value") if "from" in message and "role" not in message else ("role", "content")
    )
    named = read_cell(message, role_name).strip()
    role = ROLES.get(named.casefold())
    if named.casefold() in TOOL_ROLES:
        raise ValueError(f"a message of {named!r}; {NO_TOOLS}")
    if role is None:
        raise ValueError(f"{role_name} {named!r} is unknown; known are system, user and assistant")
    if calls := [name for name in TOOL_CALL_FIELDS if not is_blank(message.get(name))]:
        raise ValueError(f"it has {calls[0]}; {NO_TOOLS}")
    return Turn(
        role, read_content(message, text_name), trained_on=role == "assistant" and is_trained_on(message)
    )


def read_content(message: dict, name: str) -> str:
    """Return the text of a message, also of one in parts such as {"type": "text", "text": "..."}."""
    content = message.get(name)
    if not isinstance(content, list):
        return read_cell(message, name)
    texts = []
    for number, part in enumerate(content, 1):
        kind = part.get("type", "text") if isinstance(part, dict) else describe_type(part)
        if not isinstance(part, dict) or kind != "text":
            raise ValueError(
                f"{name}, part {number}: a part of the type text is needed, not {kind}; only text can be "
                "learned from"
            )
        texts.append(read_cell(part, "text"))
    return read_cell({name: "".join(texts)}, name)


def is_trained_on(message: dict) -> bool:
    """Tell whether an answer is to be learned: no flag of it is 0 or false."""
    flags = {name: message[name] for name in TRAIN_FLAGS if message.get(name) is not None}
    for name, flag in flags.items():
        if not isinstance(flag, bool | int | float):
            raise ValueError(f"{name} must be a number, true or false, not {describe_type(flag)}")
    return all(flags.values())
