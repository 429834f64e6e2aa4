"""A record (instruction, input, output) as text, and as token ids: an example."""

import hashlib
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Record:
    instruction: str
    input: str  # "" if there is none
    output: str
    id: str
    source: str
    group: str = ""  # records of one group are never split between training and held-out data
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def has_target(self) -> bool:
        """Whether the output is the text of a wanted response. A row without one is answered and scored,
        never trained on.
        """
        return self.meta.get("no_target") is not True


def compute_content_id(instruction: str, input: str, output: str) -> str:
    """A name that is a function of the content alone."""
    return hashlib.sha256("\0".join((instruction, input, output)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Example:
    prompt: list[int]
    response: list[
        int
    ]  # what is trained on; ends with end-of-text unless it was cut; empty for a row without a target
    id: str
    source: str
