"""Plain text that no adapter was trained on, in windows: how likely a model finds it tells what it has
forgotten.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loratune.data.example import Example
from loratune.data.jsonl import read_lines
from loratune.errors import UserError
from loratune.tasks.registry import BUILT_IN_PROSE

WINDOW_TOKENS = 512  # tokens


@dataclass(frozen=True)
class Prose:
    name: str  # the file, or what the built-in text is
    passages: Sequence[str]  # no window reaches from one into the next
    most: int  # windows to measure


def load_prose(path: Path | None) -> Prose:
    """The user's file, or the built-in text. Raises UserError for a file that is missing, blank or not
    UTF-8.
    """
    if path is None:
        return Prose(BUILT_IN_PROSE.name, BUILT_IN_PROSE.read(), most=20)
    text = "\n".join(read_lines(path))
    if not text.strip():
        raise UserError("the file is blank; it needs some text", setting="forgetting", value=path)
    return Prose(str(path), [text], most=200)


def draw_windows(prose: Prose, tokenizer, max_positions: int, seed: int) -> list[Example]:
    """At most `most` windows, drawn by the seed, in their order. Each is a response without a prompt: no
    template, no end.

    BOS, where prompts begin with it, is the only prompt that a window has. `positions` is the model's longest
    text; windows are as long at most. Raises UserError where nothing can be predicted.
    """
    length = min(WINDOW_TOKENS, max_positions) - len(tokenizer.bos)
    pieces = [
        piece for ids in tokenizer.encode_batch(list(prose.passages)) for piece in cut_windows(ids, length)
    ]
    if not pieces:
        raise UserError("the text is a single token; it needs more", setting="forgetting", value=prose.name)
    drawn = np.random.default_rng(seed).permutation(len(pieces))[: prose.most]
    return [
        Example(list(tokenizer.bos), pieces[number], id=str(number), source=prose.name)
        for number in sorted(drawn.tolist())
    ]


def cut_windows(ids: Sequence[int], length: int) -> Iterator[list[int]]:
    """Pieces of at most `length` tokens; a last one of a single token, of which none would be predicted, is
    left out.
    """
    return (list(ids[start : start + length]) for start in range(0, len(ids) - 1, length))
