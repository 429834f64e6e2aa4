"""Chats in a user's file: convert messages in OpenAI's, ShareGPT's and TRL's forms to one record each.

A chat becomes one conversation with all its messages. Every answer is learned, except those marked with
weight 0 and those in TRL's prompts. A chat of one question and one answer becomes an ordinary row.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loratune.data.conversation import build_conversation_record, check_conversation, list_learned
from loratune.data.example import Message, Record
from loratune.data.json_values import is_serializable
from loratune.data.sources.columns import find_columns
from loratune.data.sources.messages import parse_json_list, read_messages
from loratune.data.sources.readers import FileRow
from loratune.data.sources.tool_calls import read_tools
from loratune.data.sources.values import is_blank, read_cell, read_meta

# Columns that hold a chat, the likeliest first.
CHAT_COLUMN_NAMES = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat")
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")

# How answers and turns were handled, as the report says it.
LEARNED = "answers to learn"
WEIGHT_0 = "answers marked with weight 0, not learned"
IN_PROMPT = "answers in the prompt, not learned"
AFTER_LAST_ANSWER = "turns after the last learned answer, left out"
OTHER_SYSTEM = "system prompts not used, because the chat has another one"
REASONING = "answers whose reasoning is in a field of its own, which is not learned"
ALL_WEIGHT_0 = "chats whose answers all have weight 0"


@dataclass(frozen=True)
class ChatColumns:
    """The columns that hold a chat: one with all its messages, or a prompt's messages and a completion's."""

    prompt: str  # "" where `answer` has all messages
    answer: str
    system: str = ""  # the system message, where the messages have none; "" without such a column
    tools: str = ""  # the definitions of tools; "" without such a column

    @property
    def name(self) -> str:
        """What messages call the whole chat."""
        return f"{self.prompt} and {self.answer} together" if self.prompt else self.answer


def find_chat_columns(
    rows: Sequence[FileRow], names: Sequence[str], requested: Mapping[str, str]
) -> ChatColumns | None:
    """Return the columns that hold chats; None without any, or if the user names columns of another form."""
    if "messages" in requested:
        return ChatColumns("", requested["messages"])
    if requested.keys() & {"instruction", "output", "text"}:
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


def convert_chat(values: dict, columns: ChatColumns, source: str, *, counts: Counter[str]) -> Record | None:
    """Convert a row's chat to a record.

    Args:
        values: the row.
        columns: the columns that hold the chat.
        source: the record's source.
        counts: is updated with how the chat's messages were handled.

    Returns:
        The record; None where no answer is to be learned.

    Raises:
        ValueError: the chat is unusable; the text names the message.
    """
    completion = read_messages(values, columns.answer, "assistant")
    prompt = read_messages(values, columns.prompt, "user") if columns.prompt else []
    messages = [*map(make_context, prompt), *completion]
    try:
        check_conversation(messages)
    except ValueError as error:
        raise ValueError(f"{columns.name}: {error}") from None
    messages = add_system(messages, values, columns.system, counts=counts)
    tools = read_tools(values, columns.tools) if columns.tools else []
    if not is_serializable([messages, tools]):
        raise ValueError(f"{columns.name}: what JSON cannot express, such as a broken character, is in it")
    learned = list_learned(messages)
    counts[LEARNED] += len(learned)
    counts[WEIGHT_0] += sum(message.get("weight") == 0 for message in completion)
    counts[IN_PROMPT] += sum(message["role"] == "assistant" for message in prompt)
    counts[REASONING] += count_reasoning(values[columns.answer])
    if not learned:
        return None
    counts[AFTER_LAST_ANSWER] += len(messages) - 1 - learned[-1]
    return build_conversation_record(messages, source=source, meta=read_meta(values), tools=tools)


def count_reasoning(chat: Any) -> int:
    """Count the messages of a cell that hold reasoning outside of their content."""
    messages = parse_json_list(chat)
    if not isinstance(messages, list):
        return 0
    return sum(any(not is_blank(one.get(name)) for name in REASONING_FIELDS) for one in messages)


def make_context(message: Message) -> Message:
    """Return a message with the weight 0, if it is an answer."""
    return {**message, "weight": 0} if message["role"] == "assistant" else message


def add_system(messages: list[Message], values: dict, name: str, *, counts: Counter[str]) -> list[Message]:
    """Put the system message of a column first, if the messages have none.

    Args:
        messages: the chat.
        values: the row.
        name: of the column; "" if there is none.
        counts: is updated where the chat has another system message.
    """
    system = read_cell(values, name, required=False) if name else ""
    if messages[0]["role"] == "system":
        counts[OTHER_SYSTEM] += bool(system) and system != messages[0]["content"]
        return messages
    return [{"role": "system", "content": system}, *messages] if system else messages
