"""Token cache: tokenised records on disk, because tokenising took half of the time before the first step."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from loratune.data.example import Example
from loratune.data.template import PromptTemplate
from loratune.system.cache import TOKENS, compute_cache_key, get_cache_path, read_cached, write_cached

TokenizationResult = tuple[list[Example], dict[str, dict[str, int]]]


def load_or_tokenize(
    folder: Path, key: str, tokenize: Callable[[], TokenizationResult]
) -> TokenizationResult:
    """Return what `tokenize` returns, from the cache if it is there."""
    path = get_cache_path(folder, TOKENS, key)
    if (cached := read_cached(path, read_token_cache)) is not None:
        return cached
    examples, counts = tokenize()
    write_cached(path, TOKENS, lambda beside: write_token_cache(beside, examples, counts))
    return examples, counts


def make_token_cache_key(
    data: str,
    base: Mapping[str, str],
    template: PromptTemplate,
    *,
    max_tokens: int,
    learn: str,
    bos: Sequence[int],
) -> str:
    """Compute the key of all that the tokens depend on.

    Args:
        data: the hash of the records' file.
        base: the hashes of the base model's content, including its configuration, which affects how the
            tokenizer is loaded.
        template: the prompt template.
        max_tokens: the limit of an example's length.
        learn: which answers of a conversation are learned.
        bos: the ids with which each prompt begins.
    """
    return compute_cache_key(
        records=data,
        base=dict(base),
        template=template.to_dict(),
        max_tokens=max_tokens,
        learn=learn,
        bos=list(bos),
    )


def read_token_cache(path: Path) -> TokenizationResult:
    """Read the examples and counts; a broken file raises an error of NumPy, JSON or zipfile."""
    # NumPy refuses pickles, which could run code, unless `allow_pickle` is set.
    with np.load(path) as stored:
        metadata = json.loads(stored["metadata"].tobytes())
        ids, lengths = stored["ids"].tolist(), stored["lengths"].tolist()
    examples, start = [], 0
    for (prompt, response), (id_, source, *spans) in zip(lengths, metadata["names"], strict=True):
        middle, end = start + prompt, start + prompt + response
        context = tuple((first, last) for first, last in spans)
        examples.append(Example(ids[start:middle], ids[middle:end], id_, source, context))
        start = end
    if start != len(ids):
        raise ValueError("the lengths do not add up")
    return examples, metadata["counts"]


def write_token_cache(path: Path, examples: Sequence[Example], counts: dict[str, dict[str, int]]) -> None:
    """Write all ids as one array: one object per example would be as slow to read as tokenising is."""
    names = [(example.id, example.source, *example.context) for example in examples]
    metadata = json.dumps({"names": names, "counts": counts}).encode()
    ids = [token for example in examples for part in (example.prompt, example.response) for token in part]
    lengths = [(len(example.prompt), len(example.response)) for example in examples]
    with open(path, "wb") as file:
        np.savez(
            file,
            ids=np.array(ids, dtype=np.int32),
            lengths=np.array(lengths, dtype=np.int32).reshape(-1, 2),
            metadata=np.frombuffer(metadata, dtype=np.uint8),
        )
