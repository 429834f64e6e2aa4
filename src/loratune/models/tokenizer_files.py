"""A model folder's tokenizer: what its files say, and what is wrong with them."""

import json
from pathlib import Path
from typing import Any

from loratune.errors import UserError
from loratune.system.read import read_json


def build_load_error(folder: Path, error: Exception) -> UserError:
    """Return the error that says why a tokenizer cannot be loaded, and what to do."""
    if (folder / "tokenizer.model").exists() and not (folder / "tokenizer.json").exists():
        path = repr(str(folder))
        return UserError(
            f"{folder}: its tokenizer is there as tokenizer.model alone; a tokenizer.json is needed. Convert "
            "it once: "
            '`pip install sentencepiece protobuf tiktoken`, then `python -c "from transformers import '
            "AutoTokenizer; "
            f'AutoTokenizer.from_pretrained({path}).save_pretrained({path})"`'
        )
    return UserError(f"{folder}: no usable tokenizer (tokenizer.json is missing or broken): {error}")


def read_vocab_size(path: Path) -> int | None:
    """Return `vocab_size` of a model's config.json; None if it says nothing."""
    config = read_json(path) if path.is_file() else None
    vocab_size = config.get("vocab_size") if isinstance(config, dict) else None
    return vocab_size if type(vocab_size) is int and vocab_size > 0 else None


def remove_tokens_without_embedding(tokenizer, vocab_size: int, folder: Path) -> None:
    """Remove added tokens that have no embedding, such as a padding token that was never trained.

    In a text their names are then ordinary text.

    Raises:
        UserError: one of them is needed: end-of-text, or a token that the tokenizer puts around each text.
    """
    removed = {token for token, id_ in tokenizer.get_added_vocab().items() if id_ >= vocab_size}
    if not removed:
        return
    if tokenizer.eos_token in removed:
        raise UserError(
            f"{folder}: its end-of-text token {tokenizer.eos_token!r} has the id {tokenizer.eos_token_id:,}, "
            "but the model's "
            f"ids end at {vocab_size - 1:,}; correct eos_token in tokenizer_config.json"
        )
    if around := [id_ for id_ in tokenizer("")["input_ids"] if id_ >= vocab_size]:
        raise UserError(
            f"{folder}: its tokenizer puts {tokenizer.convert_ids_to_tokens(around[0])!r} around each text, "
            "which has the id "
            f"{around[0]:,}, but the model's ids end at {vocab_size - 1:,}; copy the tokenizer's files from "
            "the model's source again"
        )
    from tokenizers import Tokenizer as Backend

    old = tokenizer.backend_tokenizer
    state = json.loads(old.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in removed]
    if isinstance(vocabulary := state["model"].get("vocab"), dict):
        state["model"]["vocab"] = {token: id_ for token, id_ in vocabulary.items() if token not in removed}
    new = Backend.from_str(json.dumps(state))
    new.encode_special_tokens = old.encode_special_tokens
    tokenizer._tokenizer = new  # there is no public way to remove a token


def detect_bos_ids(tokenizer) -> list[int]:
    """Return the ids that a `transformers` tokenizer, as it is configured, puts before a text."""
    plain, full = tokenizer("x", add_special_tokens=False)["input_ids"], tokenizer("x")["input_ids"]
    return next((full[:start] for start in range(len(full)) if full[start : start + len(plain)] == plain), [])


def read_end_ids(path: Path) -> list[int]:
    """Return `eos_token_id` of a model's generation_config.json as a list; empty if it says nothing.

    Raises:
        UserError: it is neither a number nor a list of numbers.
    """
    if not path.is_file():
        return []
    config = read_json(path)
    value = config.get("eos_token_id") if isinstance(config, dict) else None
    end_ids: list[Any] = value if isinstance(value, list) else [value]
    if end_ids == [None]:
        return []
    if not all(isinstance(id_, int) and not isinstance(id_, bool) for id_ in end_ids):
        raise UserError(f"{path}: eos_token_id must be a number or a list of numbers, not {str(value)[:80]}")
    return end_ids
