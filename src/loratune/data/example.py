"""The two forms of a row: a record (instruction, input and output as text) and an example (token ids)."""

import hashlib
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Record:
    """A row as text."""

    instruction: str
    input: str  # "" if there is none
    output: str
    id: str
    source: str
    group: str = ""  # records of one group are never split between training and held-out data
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def has_target(self) -> bool:
        """Whether the output is to be learned; a row without a target is answered and scored only."""
        return self.meta.get("no_target") is not True


def compute_content_id(instruction: str, input: str, output: str) -> str:
    """Compute an id that depends on the content alone."""
    return hashlib.sha256("\0".join((instruction, input, output)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Example:
    """A row as token ids."""

    prompt: list[int]
    # What is trained on. It ends with end-of-text unless it was cut, and is empty for a row without a target.
    response: list[int]
    id: str
    source: str
