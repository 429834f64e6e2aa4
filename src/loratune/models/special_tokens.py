"""Special tokens, such as <|endoftext|>, and a copy of a tokenizer in which no text can become one."""

import json
import secrets
from collections.abc import Collection, Mapping
from string import ascii_lowercase
from typing import Any


def collect_special_tokens(tokenizer, end_ids: Collection[int]) -> dict[str, int]:
    """Map the texts of a `transformers` tokenizer's special tokens to their ids; added tokens that end
    answers count, too.

    A single letter is never one: where a configuration names "!" as its padding, texts still need it.
    """
    named = {*tokenizer.all_special_ids, *end_ids}
    return {
        token.content: number
        for number, token in tokenizer.added_tokens_decoder.items()
        if len(token.content) > 1 and (token.special or number in named)
    }


def generate_secret_names(texts: Collection[str]) -> dict[str, str]:
    """Map each text to a random one that nobody can have written, of letters that every normalizer leaves
    alone.
    """
    return {text: "".join(secrets.choice(ascii_lowercase) for _ in range(32)) for text in texts}


def rename_special_tokens(tokenizer, names: Mapping[str, str]):
    """Copy a `tokenizers.Tokenizer`, its special tokens under new names: the same ids, but the old names are
    plain text.

    There are two ways from a text to a special token, and both are closed: the list of added tokens, whose
    names are searched for first, and the model's own vocabulary, where Unigram or BPE may find such a name as
    a piece.
    """
    from tokenizers import Tokenizer

    whole = json.loads(tokenizer.to_str())
    added = [
        # A name of letters would not count as a single word beside other letters.
        {**token, "content": names[token["content"]], "single_word": False}
        if token["content"] in names
        else token
        for token in whole["added_tokens"]
    ]
    model = rename_vocab_entries(whole["model"], names)
    return Tokenizer.from_str(
        json.dumps({**whole, "added_tokens": added, "model": model, "truncation": None, "padding": None})
    )


def rename_vocab_entries(model: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Rename pieces of a model, in the form of tokenizer.json. Merges that make or need one of them go."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram: pieces with their scores, in the order of their ids
        return {**model, "vocab": [[names.get(piece, piece), score] for piece, score in vocabulary]}
    changed: dict[str, Any] = {
        "vocab": {names.get(piece, piece): number for piece, number in vocabulary.items()}
    }
    if model.get("unk_token") in names:
        changed["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        prefix = len(model.get("continuing_subword_prefix") or "")
        changed["merges"] = [
            [left, right]
            for left, right in model["merges"]
            if names.keys().isdisjoint((left, right, left + right[prefix:]))
        ]
    return {**model, **changed}
