"""The two forms of a row: a record (text, in one turn or as a conversation) and an example (token ids)."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Message = Mapping[str, Any]  # role and content, as chat templates take them; perhaps tool_calls or a weight


@dataclass(frozen=True)
class Record:
    """A row as text: one turn, a conversation, or plain text."""

    instruction: str
    input: str  # "" if there is none
    output: str
    id: str
    source: str
    group: str = ""  # records of one group are never split between training and held-out data
    meta: dict[str, Any] = field(default_factory=dict)
    # Of a conversation; the texts above are then its last learned turn, with the turns before it as input.
    messages: Sequence[Message] = ()
    tools: Sequence[Mapping[str, Any]] = ()  # JSON schemas of the tools that a conversation may call
    is_text: bool = False  # plain text: the output, without a prompt, and all of it is learned

    @property
    def has_target(self) -> bool:
        """Whether the output is to be learned; a row without a target is answered and scored only."""
        return self.meta.get("no_target") is not True


def compute_content_id(instruction: str, input: str, output: str) -> str:
    """Compute an id that depends on the content alone."""
    return hashlib.sha256("\0".join((instruction, input, output)).encode()).hexdigest()[:16]


def compute_conversation_id(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> str:
    """Compute an id that depends on the content of a conversation alone."""
    content = json.dumps([list(messages), list(tools)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def build_text_record(
    text: str, *, source: str, record_id: str = "", group: str = "", meta: dict[str, Any] | None = None
) -> Record:
    """Build the record of plain text, all of which is learned."""
    meta = {} if meta is None else meta
    record_id = record_id or compute_content_id("", "", text)
    return Record("", "", text, record_id, source, group, meta, is_text=True)


@dataclass(frozen=True)
class Example:
    """A row as token ids."""

    prompt: list[int]
    # What follows the prompt. It ends with an end token unless it was cut, and is empty without a target.
    response: list[int]
    id: str
    source: str
    # Spans of the response that are not trained on: what stands between the answers of a conversation.
    context: tuple[tuple[int, int], ...] = ()

    @property
    def learned(self) -> list[int]:
        """The tokens of the response that are trained on."""
        if not self.context:
            return self.response
        return [token for number, token in enumerate(self.response) if self.is_learned(number)]

    @property
    def answers(self) -> int:
        """The number of answers that are learned, whole or in part."""
        return len(self.context) + 1 if self.response else 0

    def is_learned(self, number: int) -> bool:
        """Return whether this token of the response is trained on."""
        return not any(start <= number < stop for start, stop in self.context)
