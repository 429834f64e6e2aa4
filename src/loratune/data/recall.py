"""Rows that were encoded before: to encode Dolly and FinQA took half of the time before a training run's first step."""

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from loratune.data import encode
from loratune.data.encode import Encoded
from loratune.data.template import Template
from loratune.errors import UserError
from loratune.files import keep_newest, replacing
from loratune.reading import fingerprint

KEPT = 4  # files, of some ten MB each; the ones not used for longest are removed
TOKENIZER_FILES = ("tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json")

Rows = tuple[list[Encoded], dict[str, dict[str, int]]]


def recalled(cache: Path, key: str, make: Callable[[], Rows]) -> Rows:
    """What `make` returns, from the cache if it is there. A file that cannot be read is made anew; none is needed."""
    path = cache / f"tokens-{key}.npz"
    with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        found = read(path)
        path.touch()
        return found
    rows, counts = make()
    with suppress(UserError):  # a full or read-only disk is no reason to stop
        write(path, rows, counts)
        keep_newest(cache, "tokens-*.npz", KEPT)
    return rows, counts


def key_of(data: str, tokenizer: Path, template: Template, max_tokens: int, bos: Sequence[int]) -> str:
    """Of all that the tokens depend on: the records, by their fingerprint, tokenizer, template, limit, BOS and our own code."""
    files = [*sorted({file for pattern in TOKENIZER_FILES for file in tokenizer.glob(pattern)}), Path(encode.__file__)]
    parts = [data, *map(fingerprint, files), template.to_dict(), max_tokens, bos]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


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
