"""Decoding settings: greedy or sampled, from which tokens, and how many tokens at most."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Decoding:
    """The decoding settings of one answer; the command line's options have the same names and defaults.

    Raises:
        ValueError: a value is out of range.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0  # 0 always takes the likeliest token
    top_p: float = 1.0  # sample from the likeliest tokens that together have this probability
    top_k: int = 0  # sample from this many of the likeliest tokens; 0 means all
    repetition_penalty: float = 1.0  # see `apply_repetition_penalty`; 1 means none
    seed: int = 0

    def __post_init__(self) -> None:
        allowed = {
            "max_new_tokens": self.max_new_tokens >= 1,
            "temperature": self.temperature >= 0,
            "top_p": 0 < self.top_p <= 1,
            "top_k": self.top_k >= 0,
            "repetition_penalty": self.repetition_penalty > 0,
            "seed": self.seed >= 0,
        }
        for name, is_allowed in allowed.items():
            if not is_allowed:
                raise ValueError(f"{name}={getattr(self, name)} is out of range")
