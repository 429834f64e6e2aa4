"""Conversations: lists of messages, checked, which of their answers are learned, and how they are shortened.

A message is an object as chat templates take it: a role (system, user, assistant, tool), a content, and
perhaps a weight (0: this answer is context, not learned), tool_calls, tool_call_id and name. A turn is a
user's message with all that follows, up to the next user's.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from loratune.data.example import Message, Record, compute_content_id, compute_conversation_id
from loratune.data.json_values import describe_type, has_lone_surrogate

ROLES = ("system", "user", "assistant", "tool")
PLAIN_FIELDS = {"role", "content", "weight"}
REMEDIES = {
    ("user", "user"): "join them into one message",
    ("assistant", "assistant"): "join them into one message",
    ("tool", "user"): "the assistant's answer between them is missing",
    ("user", "tool"): "the assistant's call between them is missing",
}


def check_conversation(messages: Sequence[Message]) -> None:
    """Check the messages' roles, contents and order.

    Raises:
        ValueError: a message is not usable where it stands; the text names it by its number, from 1.
    """
    for number, message in enumerate(messages, 1):
        try:
            check_message(message)
        except ValueError as error:
            raise ValueError(f"message {number}: {error}") from None
    roles = [message["role"] for message in messages]
    if "system" in roles[1:]:
        number = roles.index("system", 1) + 1
        raise ValueError(f"message {number}: a system message must be the first one; put its text there")
    if "assistant" not in roles:
        raise ValueError("no message is an assistant's, so there is nothing to learn")
    spoken = [(number, role) for number, role in enumerate(roles, 1) if role != "system"]
    first, role = spoken[0]
    if role != "user":
        raise ValueError(
            f"message {first}: the conversation begins with the role {role!r}; a user's message must come "
            "first; add it, or remove this message"
        )
    for (_, before), (number, role) in pairwise(spoken):
        if remedy := REMEDIES.get((before, role)):
            raise ValueError(f"message {number}: a message of {role} follows one of {before}; {remedy}")


def check_prompt(messages: Sequence[Message]) -> None:
    """Check a conversation that waits for an answer.

    Raises:
        ValueError: a message is not usable where it stands, or the last one is an answer.
    """
    if not messages:
        raise ValueError("it has no messages")
    if isinstance(messages[-1], Mapping) and messages[-1].get("role") == "assistant":
        raise ValueError("its last message is an assistant's; a user's or a tool's is needed, to be answered")
    check_conversation([*messages, {"role": "assistant", "content": "an answer"}])


def check_message(message: Message) -> None:
    """Raise ValueError unless a message has a known role and a usable content."""
    if not isinstance(message, Mapping):
        raise ValueError(f"an object with role and content is needed, not {describe_type(message)}")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ValueError(f"the role {role!r} is unknown; known are {', '.join(ROLES)}")
    calls = message.get("tool_calls")
    if calls:
        if role != "assistant":
            raise ValueError(f"it has tool_calls, which only an assistant's message may have, not {role!r}")
        for number, call in enumerate(calls if isinstance(calls, list | tuple) else [None], 1):
            try:
                get_function(call)
            except ValueError as error:
                raise ValueError(f"tool_calls, number {number}: {error}") from None
    weight = message.get("weight", 1)
    if not isinstance(weight, bool | int | float) or weight not in (0, 1):
        raise ValueError(f"weight must be 0 or 1, not {weight!r}")
    if content is None and calls:
        return
    if not isinstance(content, str):
        raise ValueError(f"content must be text, not {describe_type(content)}")
    if not content.strip() and not calls:
        raise ValueError("content is blank")
    if has_lone_surrogate(content):
        raise ValueError("content holds a broken character (a lone surrogate)")


def get_function(call: Any) -> Mapping[str, Any]:
    """Return the name and arguments of a tool call, with or without OpenAI's wrapper `function`.

    Raises:
        ValueError: the call has no name.
    """
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if isinstance(function, Mapping):
        name = function.get("name")
        if isinstance(name, str) and name.strip():
            return function
    raise ValueError("a function with a name is needed")


def list_learned(messages: Sequence[Message], learn: str = "all") -> list[int]:
    """Return the numbers of the answers that are learned, from 0.

    Args:
        messages: a checked conversation.
        learn: all or last.
    """
    answers = [
        number
        for number, message in enumerate(messages)
        if message["role"] == "assistant" and message.get("weight", 1)
    ]
    return answers[-1:] if learn == "last" else answers


def list_turn_starts(messages: Sequence[Message]) -> list[int]:
    """Return the number of each turn's first message, from 0."""
    return [number for number, message in enumerate(messages) if message["role"] == "user"]


def drop_oldest_turns(messages: Sequence[Message], count: int) -> list[Message]:
    """Return a conversation without its `count` oldest turns; a system message stays."""
    system = [message for message in messages[:1] if message["role"] == "system"]
    return [*system, *messages[list_turn_starts(messages)[count] :]]


@dataclass(frozen=True)
class TurnView:
    """A conversation as one turn, for templates that know nothing else: its last question and the rest."""

    instruction: str
    input: str  # the messages before and after the question, as `User: ...` and so on; "" without any
    turn_starts: list[int]  # the index in `input` where each turn, or a system message, begins


def view_as_turn(messages: Sequence[Message]) -> TurnView:
    """View a conversation that waits for an answer as one turn."""
    question = list_turn_starts(messages)[-1]
    others = [number for number in range(len(messages)) if number != question]
    beginnings = {0, *list_turn_starts(messages), question + 1}
    starts, text = [], ""
    for number in others:
        if number in beginnings:
            starts.append(len(text))
        text += format_turn(messages[number]) + "\n"
    return TurnView(messages[question]["content"], text.removesuffix("\n"), starts)


def format_turn(message: Message) -> str:
    """Format a message as a line of a transcript."""
    return f"{message['role'].capitalize()}: {format_content(message)}"


def format_content(message: Message) -> str:
    """Return a message's text; tool calls follow it as JSON."""
    calls = [format_call(call) for call in message.get("tool_calls") or ()]
    return "\n".join(filter(None, [message.get("content"), *calls]))


def format_call(call: Mapping[str, Any]) -> str:
    """Format a tool call as JSON, for people and for comparing records."""
    function = get_function(call)
    shown = {"name": function["name"], "arguments": function.get("arguments", {})}
    return json.dumps(shown, ensure_ascii=False)


def build_conversation_record(
    messages: Sequence[Message],
    *,
    source: str,
    record_id: str = "",
    group: str = "",
    meta: dict[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> Record:
    """Build the record of a checked conversation.

    Messages after the last learned answer are left out. A conversation of one plain turn becomes a record of
    an instruction and an output.

    Raises:
        ValueError: no answer is learned.
    """
    learned = list_learned(messages)
    if not learned:
        raise ValueError("all its answers have the weight 0, so there is nothing to learn")
    messages = list(messages[: learned[-1] + 1])
    meta = {} if meta is None else meta
    if is_plain_turn(messages) and not tools:
        instruction, output = (message["content"] for message in messages)
        record_id = record_id or compute_content_id(instruction, "", output)
        return Record(instruction, "", output, record_id, source, group, meta)
    turn = view_as_turn(messages[:-1])
    return Record(
        turn.instruction,
        turn.input,
        format_content(messages[-1]),
        record_id or compute_conversation_id(messages, tools),
        source,
        group,
        meta,
        messages=messages,
        tools=list(tools),
    )


def is_plain_turn(messages: Sequence[Message]) -> bool:
    """Return whether these are only a question's text and its answer's."""
    return len(messages) == 2 and all(message.keys() <= PLAIN_FIELDS for message in messages)


def list_messages(record: Record) -> Sequence[Message]:
    """Return a record's messages; those of a record of one turn are a user's and an assistant's."""
    if record.messages:
        return record.messages
    return [
        {"role": "user", "content": join_input(record.instruction, record.input)},
        {"role": "assistant", "content": record.output},
    ]


def join_input(instruction: str, input: str) -> str:
    """Return an instruction and its input as one message's text."""
    return f"{instruction}\n\n{input}" if input else instruction
