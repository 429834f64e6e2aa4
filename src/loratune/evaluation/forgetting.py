"""Cut plain text that no adapter was trained on into windows, whose loss measures forgetting."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loratune.data.example import Example
from loratune.data.jsonl import read_lines
from loratune.errors import UserError
from loratune.models.tokenizer import Tokenizer
from loratune.tasks.registry import BUILT_IN_PROSE

WINDOW_TOKENS = 512


@dataclass(frozen=True)
class Prose:
    """Plain text on which forgetting is measured."""

    name: str  # the file, or a description of the built-in text
    passages: Sequence[str]  # no window spans two of them
    max_windows: int


def load_prose(path: Path | None) -> Prose:
    """Load the user's file, or the built-in text if `path` is None.

    Raises:
        UserError: the file is missing, blank or not UTF-8.
    """
    if path is None:
        return Prose(BUILT_IN_PROSE.name, BUILT_IN_PROSE.read(), max_windows=20)
    text = "\n".join(read_lines(path))
    if not text.strip():
        raise UserError("the file is blank; it needs some text", setting="forgetting", value=path)
    return Prose(str(path), [text], max_windows=200)


def draw_windows(prose: Prose, tokenizer: Tokenizer, max_positions: int, seed: int) -> list[Example]:
    """Draw at most `prose.max_windows` windows and return them in the order of the text.

    A window is a response without template and without end-of-text; its prompt is BOS if the tokenizer's
    prompts begin with it, else empty.

    Args:
        prose: the text.
        tokenizer: the model's.
        max_positions: the model's longest input, which no window exceeds.
        seed: of the draw.

    Raises:
        UserError: the text is too short for a token to be predicted.
    """
    length = min(WINDOW_TOKENS, max_positions) - len(tokenizer.bos)
    windows = [
        window for ids in tokenizer.encode_batch(list(prose.passages)) for window in cut_windows(ids, length)
    ]
    if not windows:
        raise UserError("the text is a single token; it needs more", setting="forgetting", value=prose.name)
    drawn = np.random.default_rng(seed).permutation(len(windows))[: prose.max_windows]
    return [
        Example(list(tokenizer.bos), windows[number], id=str(number), source=prose.name)
        for number in sorted(drawn.tolist())
    ]


def cut_windows(ids: Sequence[int], length: int) -> Iterator[list[int]]:
    """Cut the ids into windows of at most `length` tokens.

    A last window of a single token is left out, because no token of it would be predicted.
    """
    return (list(ids[start : start + length]) for start in range(0, len(ids) - 1, length))
