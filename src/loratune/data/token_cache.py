"""Rows that were encoded before: to encode Dolly and FinQA took half of the time before a training run's
first step.
"""

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from loratune.data.example import Example
from loratune.data.template import Template
from loratune.errors import UserError
from loratune.system.atomic import keep_newest, replace_atomically
from loratune.system.cache import compute_cache_key

MAX_CACHE_FILES = 4  # files, of some ten MB each; the ones not used for longest are removed

TokenizationResult = tuple[list[Example], dict[str, dict[str, int]]]


def load_or_tokenize(cache: Path, key: str, make: Callable[[], TokenizationResult]) -> TokenizationResult:
    """What `make` returns, from the cache if it is there. A file that cannot be read is made anew; none is
    needed.
    """
    path = cache / f"tokens-{key}.npz"
    with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        found = read_token_cache(path)
        with suppress(OSError):  # another user's cache may be read-only
            path.touch()
        return found
    rows, counts = make()
    with suppress(UserError, OSError):  # a full or read-only disk is no reason to stop
        write_token_cache(path, rows, counts)
        keep_newest(cache, "tokens-*.npz", MAX_CACHE_FILES)
    return rows, counts


def make_token_cache_key(
    data: str, base: Mapping[str, str], template: Template, max_tokens: int, *, bos: Sequence[int]
) -> str:
    """Of the records' fingerprint, the base's content, the template, the limit, and what each prompt begins
    with.

    The base's configuration is part of it, since it has a say in how its tokenizer is read.
    """
    return compute_cache_key(
        records=data, base=dict(base), template=template.to_dict(), max_tokens=max_tokens, bos=list(bos)
    )


def read_token_cache(path: Path) -> TokenizationResult:
    # Never a pickle: without `allow_pickle` NumPy refuses them.
    with np.load(path) as stored:
        told = json.loads(stored["told"].tobytes())
        ids, lengths = stored["ids"].tolist(), stored["lengths"].tolist()
    rows, start = [], 0
    for (prompt, response), (id_, source) in zip(lengths, told["names"], strict=True):
        middle, end = start + prompt, start + prompt + response
        rows.append(Example(ids[start:middle], ids[middle:end], id_, source))
        start = end
    if start != len(ids):
        raise ValueError("the lengths do not add up")
    return rows, told["counts"]


def write_token_cache(path: Path, examples: Sequence[Example], counts: dict) -> None:
    told = json.dumps({"names": [(row.id, row.source) for row in examples], "counts": counts}).encode()
    with replace_atomically(path) as beside, open(beside, "wb") as file:
        np.savez(
            file,
            ids=np.array(
                [token for row in examples for part in (row.prompt, row.response) for token in part],
                dtype=np.int32,
            ),
            lengths=np.array(
                [(len(row.prompt), len(row.response)) for row in examples], dtype=np.int32
            ).reshape(-1, 2),
            told=np.frombuffer(told, dtype=np.uint8),
        )
