"""Special tokens, such as <|endoftext|>: collect them, and rename them so that no text can become one."""

import json
import secrets
from collections.abc import Collection, Mapping
from string import ascii_lowercase
from typing import Any


def collect_special_tokens(tokenizer, end_ids: Collection[int]) -> dict[str, int]:
    """Map the special tokens of a `transformers` tokenizer to their ids, by their texts.

    Added tokens that end answers are among them. A single character is not: where a configuration uses "!"
    for padding, texts still need it.
    """
    special_ids = {*tokenizer.all_special_ids, *end_ids}
    return {
        token.content: id_
        for id_, token in tokenizer.added_tokens_decoder.items()
        if len(token.content) > 1 and (token.special or id_ in special_ids)
    }


def generate_secret_names(texts: Collection[str]) -> dict[str, str]:
    """Map each text to a random name that no text contains, of letters that every normalizer keeps."""
    return {text: "".join(secrets.choice(ascii_lowercase) for _ in range(32)) for text in texts}


def rename_special_tokens(tokenizer, names: Mapping[str, str]):
    """Copy a `tokenizers.Tokenizer`, renaming its special tokens, so that their old names are plain text.

    A text becomes a special token in two ways: by the list of added tokens, which is searched first, and by
    the vocabulary, where Unigram or BPE may have its name as a piece. Both are renamed.
    """
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.to_str())
    added = [
        # A name of letters would not count as a single word beside other letters.
        {**token, "content": names[token["content"]], "single_word": False}
        if token["content"] in names
        else token
        for token in state["added_tokens"]
    ]
    model = rename_vocab_entries(state["model"], names)
    return Tokenizer.from_str(
        json.dumps({**state, "added_tokens": added, "model": model, "truncation": None, "padding": None})
    )


def rename_vocab_entries(model: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Rename vocabulary entries of a tokenizer.json's model; merges that involve one are removed."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram: pieces with their scores, in the order of their ids
        return {**model, "vocab": [[names.get(piece, piece), score] for piece, score in vocabulary]}
    changed: dict[str, Any] = {"vocab": {names.get(piece, piece): id_ for piece, id_ in vocabulary.items()}}
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
