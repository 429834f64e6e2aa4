"""Messages of a chat in OpenAI's and ShareGPT's forms: converted to what chat templates take."""

import json
from typing import Any

from loratune.data.example import Message
from loratune.data.json_values import describe_type, require_object
from loratune.data.sources.tool_calls import convert_calls, read_calls
from loratune.data.sources.values import read_cell
from loratune.system.read import parse_json

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
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "tool_response": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
# The text of a message in one of these roles is a call or a list of calls, in JSON (LLaMA-Factory, ms-swift).
CALL_ROLES = ("function_call", "tool_call")
# An answer with 0 or false in one of these is not learned (OpenAI and Axolotl, Together, verl, ms-swift).
TRAIN_FLAGS = ("weight", "train", "trainable", "loss_mask", "loss")


def parse_json_list(value: Any) -> Any:
    """Parse a list that is JSON text, as in CSV or Parquet; return other values unchanged."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return parse_json(value)
        except (json.JSONDecodeError, RecursionError):
            return value
    return value


def read_messages(values: dict, name: str, role: str) -> list[Message]:
    """Read the messages of a cell; a plain text is one message of `role`.

    Raises:
        ValueError: a message is unusable; the text names it by its number, from 1.
    """
    value = parse_json_list(values.get(name))
    if isinstance(value, str) and name != "messages":
        return [{"role": role, "content": read_cell(values, name)}]
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} must be a list of role and content, not {describe_type(value)}")
    messages = []
    for number, message in enumerate(value, 1):
        try:
            messages.append(read_message(require_object(message)))
        except ValueError as error:
            raise ValueError(f"{name}: message {number}: {error}") from error
    return messages


def read_message(message: dict) -> Message:
    """Read a message with role and content (OpenAI) or from and value (ShareGPT).

    Raises:
        ValueError: its role is unknown, or its content or one of its calls is unusable.
    """
    role_name, text_name = (
        ("from", "value") if "from" in message and "role" not in message else ("role", "content")
    )
    named = read_cell(message, role_name).strip()
    role = ROLES.get(named.casefold())
    if role is None:
        raise ValueError(
            f"{role_name} {named!r} is unknown; known are {', '.join(dict.fromkeys(ROLES.values()))}"
        )
    if named.casefold() in CALL_ROLES:
        content, calls = "", convert_calls(message.get(text_name), text_name)
    else:
        calls = read_calls(message)
        content = read_content(message, text_name, required=not calls)
    read: dict[str, Any] = {"role": role, "content": content}
    if calls:
        read["tool_calls"] = calls
    for name in ("tool_call_id", "name"):
        if text := read_cell(message, name, required=False):
            read[name] = text
    if role == "assistant" and not is_trained_on(message):
        read["weight"] = 0
    return read


def read_content(message: dict, name: str, *, required: bool = True) -> str:
    """Return the text of a message, also of one in parts such as {"type": "text", "text": "..."}."""
    content = message.get(name)
    if not isinstance(content, list):
        return read_cell(message, name, required)
    texts = []
    for number, part in enumerate(content, 1):
        kind = part.get("type", "text") if isinstance(part, dict) else describe_type(part)
        if not isinstance(part, dict) or kind != "text":
            raise ValueError(
                f"{name}, part {number}: a part of the type text is needed, not {kind}; only text can be "
                "learned from"
            )
        texts.append(read_cell(part, "text"))
    return read_cell({name: "".join(texts)}, name, required)


def is_trained_on(message: dict) -> bool:
    """Tell whether an answer is to be learned: no flag of it is 0 or false."""
    flags = {name: message[name] for name in TRAIN_FLAGS if message.get(name) is not None}
    for name, flag in flags.items():
        if not isinstance(flag, bool | int | float):
            raise ValueError(f"{name} must be a number, true or false, not {describe_type(flag)}")
    return all(flags.values())
