"""The model's own tokenizer, adding nothing of its own accord."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from loratune.errors import UserError
from loratune.quiet import quiet_libraries
from loratune.reading import read_json


class Tokenizer:
    """Text to ids and back. No beginning-of-text or other special token is ever added."""

    def __init__(self, tokenizer, more_ends: Sequence[int] = ()):
        self.hugging_face = tokenizer
        self.eos_id: int = tokenizer.eos_token_id  # what training puts after a response
        self.end_ids = frozenset([self.eos_id, *more_ends])  # what ends an answer: some bases were taught another token, too

    @classmethod
    def load(cls, folder: Path, **options) -> "Tokenizer":
        """Raises UserError when the folder holds no usable tokenizer."""
        from transformers import AutoTokenizer

        try:
            with quiet_libraries():
                tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
        except Exception as error:  # whatever transformers and tokenizers raise for a broken file
            raise unusable(folder, error) from error
        if tokenizer.eos_token_id is None:
            raise UserError(f"{folder}: the tokenizer names no end-of-text token (eos_token), so answers could not end")
        if entries := vocabulary_in(folder / "config.json"):
            remove_tokens_beyond(tokenizer, entries, folder)
        return cls(tokenizer, ends_in(folder / "generation_config.json"))

    @property
    def has_chat_template(self) -> bool:
        """Whether the model's makers say how it is asked; then it was tuned to answer already."""
        return bool(self.hugging_face.chat_template)

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return 1 + max(self.hugging_face.get_vocab().values())

    def encode(self, text: str) -> list[int]:
        return self.hugging_face.encode(text, add_special_tokens=False)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return self.hugging_face(texts, add_special_tokens=False)["input_ids"] if texts else []

    def decode(self, ids: list[int]) -> str:
        """The text without special tokens, spaces exactly as they are."""
        return self.hugging_face.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def pieces(self) -> dict[int, bytes]:
        """What each token stands for, added tokens left out. Raises UserError unless the tokens are made of bytes."""
        if not self.is_byte_level():
            raise UserError(
                "--constrain: needs a byte-level tokenizer, such as those of GPT-2, SmolLM2, Qwen and Llama 3; leave it out"
            )
        added = self.hugging_face.get_added_vocab()
        letters = byte_letters()
        return {
            number: bytes(letters[letter] for letter in token)
            for token, number in self.hugging_face.get_vocab().items()
            if token not in added
        }

    def is_byte_level(self) -> bool:
        from tokenizers.decoders import ByteLevel

        return isinstance(self.hugging_face.backend_tokenizer.decoder, ByteLevel)

    def spelled(self, ids: Sequence[int]) -> list[bytes]:
        """What each token adds to the text, in UTF-8, which may be a part of a letter; of an added token its name."""
        added, letters = self.hugging_face.get_added_vocab(), byte_letters() if self.is_byte_level() else {}
        tokens = self.hugging_face.convert_ids_to_tokens(list(ids))
        return [token.encode() if token in added else bytes_of(token, letters) for token in tokens]

    def save(self, folder: Path) -> None:
        self.hugging_face.save_pretrained(folder)


def unusable(folder: Path, error: Exception) -> UserError:
    """What is wrong with a tokenizer that cannot be loaded, and what to do."""
    if (folder / "tokenizer.model").exists() and not (folder / "tokenizer.json").exists():
        where = repr(str(folder))
        return UserError(
            f"{folder}: its tokenizer is there as tokenizer.model alone; a tokenizer.json is needed. Convert it once: "
            '`pip install sentencepiece protobuf tiktoken`, then `python -c "from transformers import AutoTokenizer; '
            f'AutoTokenizer.from_pretrained({where}).save_pretrained({where})"`'
        )
    return UserError(f"{folder}: no usable tokenizer (tokenizer.json is missing or broken): {error}")


def vocabulary_in(path: Path) -> int | None:
    """How many entries the model's embedding has, as its configuration says; None where it says nothing."""
    config = read_json(path) if path.is_file() else None
    entries = config.get("vocab_size") if isinstance(config, dict) else None
    return entries if type(entries) is int and entries > 0 else None


def remove_tokens_beyond(tokenizer, entries: int, folder: Path) -> None:
    """Take out the added tokens that the model has no embedding for, such as a padding token that was never trained.

    In a text their names are then letters like all others. Raises UserError for those that are needed: the end-of-text
    token, and what the tokenizer puts around each text.
    """
    beyond = {token for token, number in tokenizer.get_added_vocab().items() if number >= entries}
    if not beyond:
        return
    if tokenizer.eos_token in beyond:
        raise UserError(
            f"{folder}: its end-of-text token {tokenizer.eos_token!r} has the id {tokenizer.eos_token_id:,}, but the model's "
            f"ids end at {entries - 1:,}; correct eos_token in tokenizer_config.json"
        )
    if around := [number for number in tokenizer("")["input_ids"] if number >= entries]:
        raise UserError(
            f"{folder}: its tokenizer puts {tokenizer.convert_ids_to_tokens(around[0])!r} around each text, which has the id "
            f"{around[0]:,}, but the model's ids end at {entries - 1:,}; copy the tokenizer's files from the model's source again"
        )
    from tokenizers import Tokenizer as Backend

    old = tokenizer.backend_tokenizer
    parts = json.loads(old.to_str())
    parts["added_tokens"] = [token for token in parts["added_tokens"] if token["content"] not in beyond]
    if isinstance(vocabulary := parts["model"].get("vocab"), dict):
        parts["model"]["vocab"] = {token: number for token, number in vocabulary.items() if token not in beyond}
    new = Backend.from_str(json.dumps(parts))
    new.encode_special_tokens = old.encode_special_tokens
    tokenizer._tokenizer = new  # there is no public way to remove a token


def ends_in(path: Path) -> list[int]:
    """The tokens at which the model's makers end its answers, if the file is there and names some."""
    if not path.is_file():
        return []
    config = read_json(path)
    named = config.get("eos_token_id") if isinstance(config, dict) else None
    ends = named if isinstance(named, list) else [named]
    if ends == [None]:
        return []
    if not all(isinstance(end, int) and not isinstance(end, bool) for end in ends):
        raise UserError(f"{path}: eos_token_id must be a number or a list of numbers, not {str(named)[:80]}")
    return ends


def bytes_of(token: str, letters: dict[str, int]) -> bytes:
    """`letters` are those of a byte-level tokenizer; others write a space as U+2581, and a lone byte as <0x0A>."""
    if letters:
        return bytes(letters[letter] for letter in token)
    if byte := re.fullmatch("<0x([0-9A-F]{2})>", token):
        return bytes.fromhex(byte[1])
    return token.replace("\u2581", " ").encode()


def byte_letters() -> dict[str, int]:
    """The letter that byte-level tokenizers write for each byte (Radford et al. 2019, section 2.2), and that byte.

    A byte that is a visible Latin-1 letter is written as that letter, the others, in order, as those from U+0100 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + place): byte for place, byte in enumerate(others)}
