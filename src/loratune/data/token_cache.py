"""Rows that were encoded before: to encode Dolly and FinQA took half of the time before a training run's first step."""

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from loratune.data.example import Encoded
from loratune.data.template import Template
from loratune.errors import UserError
from loratune.system.atomic import keep_newest, replacing
from loratune.system.cache import cache_key

KEPT = 4  # files, of some ten MB each; the ones not used for longest are removed

Rows = tuple[list[Encoded], dict[str, dict[str, int]]]


def recalled(cache: Path, key: str, make: Callable[[], Rows]) -> Rows:
    """What `make` returns, from the cache if it is there. A file that cannot be read is made anew; none is needed."""
    path = cache / f"tokens-{key}.npz"
    with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        found = read(path)
        with suppress(OSError):  # another user's cache may be read-only
            path.touch()
        return found
    rows, counts = make()
    with suppress(UserError, OSError):  # a full or read-only disk is no reason to stop
        write(path, rows, counts)
        keep_newest(cache, "tokens-*.npz", KEPT)
    return rows, counts


def key_of(data: str, base: Mapping[str, str], template: Template, max_tokens: int, *, bos: Sequence[int]) -> str:
    """Of the records' fingerprint, the base's content, the template, the limit, and what each prompt begins with.

    The base's configuration is part of it, since it has a say in how its tokenizer is read.
    """
    return cache_key(records=data, base=dict(base), template=template.to_dict(), max_tokens=max_tokens, bos=list(bos))


def read(path: Path) -> Rows:
    # Never a pickle: without `allow_pickle` NumPy refuses them.
    with np.load(path) as stored:
        told = json.loads(stored["told"].tobytes())
        ids, lengths = stored["ids"].tolist(), stored["lengths"].tolist()
    rows, start = [], 0
    for (prompt, response), (id_, source) in zip(lengths, told["names"], strict=True):
        middle, end = start + prompt, start + prompt + response
        rows.append(Encoded(ids[start:middle], ids[middle:end], id_, source))
        start = end
    if start != len(ids):
        raise ValueError("the lengths do not add up")
    return rows, told["counts"]


def write(path: Path, rows: Sequence[Encoded], counts: dict) -> None:
    told = json.dumps({"names": [(row.id, row.source) for row in rows], "counts": counts}).encode()
    with replacing(path) as beside, open(beside, "wb") as file:
        np.savez(
            file,
            ids=np.array([token for row in rows for part in (row.prompt, row.response) for token in part], dtype=np.int32),
            lengths=np.array([(len(row.prompt), len(row.response)) for row in rows], dtype=np.int32).reshape(-1, 2),
            told=np.frombuffer(told, dtype=np.uint8),
        )
