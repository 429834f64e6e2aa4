"""The model's own tokenizer: texts stay texts, and prompts begin with BOS where the tokenizer's configuration
says so.
"""

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from loratune.errors import UserError
from loratune.models.special_tokens import (
    collect_special_tokens,
    generate_secret_names,
    rename_special_tokens,
)
from loratune.system.quiet import quiet_libraries
from loratune.system.read import read_json

# A prompt: a template's own text and somebody else's in turn, the template's first.
PromptParts = Sequence[str]


class Tokenizer:
    """Encode text to ids and decode ids to text.

    A text never becomes a special token, whatever it says; a template's own markers do.
    """

    def __init__(self, tokenizer, extra_end_ids: Iterable[int] = (), bos: Sequence[int] | None = None):
        self.hugging_face = tokenizer
        self.eos_id: int = tokenizer.eos_token_id  # what training puts after a response
        # What ends an answer: some bases were trained with another token, too.
        self.end_ids = frozenset([self.eos_id, *extra_end_ids])
        # What every prompt begins with, usually one id or none.
        self.bos = detect_bos_ids(tokenizer) if bos is None else list(bos)
        self._markers: dict[str, list[tuple[int, int]]] = {}

    @classmethod
    def load(cls, folder: Path, **options) -> "Tokenizer":
        """Raises UserError when the folder holds no usable tokenizer."""
        from transformers import AutoTokenizer

        try:
            with quiet_libraries():
                tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
        except Exception as error:  # whatever transformers and tokenizers raise for a broken file
            raise build_load_error(folder, error) from error
        if not tokenizer.is_fast:
            kind = type(tokenizer).__name__
            raise UserError(
                f"{folder}: its tokenizer ({kind}) cannot be written as a tokenizer.json; use a base that "
                "has one"
            )
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"{folder}: the tokenizer names no end-of-text token (eos_token), so answers could not end"
            )
        if entries := read_vocab_size(folder / "config.json"):
            remove_tokens_without_embedding(tokenizer, entries, folder)
        return cls(tokenizer, read_end_ids(folder / "generation_config.json"))

    @property
    def has_chat_template(self) -> bool:
        """Whether the model's makers say how it is asked; then it may have been tuned to answer already."""
        return bool(self.hugging_face.chat_template)

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return 1 + max(self.hugging_face.get_vocab().values())

    @property
    def bos_text(self) -> str:
        """What prompts begin with, in words; empty without BOS."""
        return "".join(self.hugging_face.convert_ids_to_tokens(self.bos))

    def without_bos(self) -> "Tokenizer":
        """For what was trained before prompts began with BOS."""
        return Tokenizer(self.hugging_face, self.end_ids, bos=())

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode texts as texts: no special token, and nothing added."""
        return self._encode_parts([("", text) for text in texts])

    def encode_prompts(self, prompts: Sequence[PromptParts]) -> list[list[int]]:
        """Encode prompts: BOS, if there is one and the template does not bring its own, then the parts as one
        text.
        """
        rows = self._encode_parts(prompts)
        return [row if row[: len(self.bos)] == self.bos else [*self.bos, *row] for row in rows]

    def _encode_parts(self, prompts: Sequence[PromptParts]) -> list[list[int]]:
        """Encode each prompt as one text, in which only the template's own markers are special tokens."""
        if not prompts:
            return []
        encoded = self.hugging_face(["".join(parts) for parts in prompts], add_special_tokens=False)
        rows = encoded["input_ids"]
        wrong = [
            number
            for number, parts in enumerate(prompts)
            if not self._has_only_own_markers(encoded, number, parts)
        ]
        for number, row in zip(
            wrong, self._encode_protected([prompts[number] for number in wrong]), strict=True
        ):
            rows[number] = row
        return rows

    def _has_only_own_markers(self, encoded, number: int, parts: PromptParts) -> bool:
        """Whether the special tokens of a row are the template's own, each at its place."""
        row, markers = encoded["input_ids"][number], self._find_markers(parts)
        if not markers:
            return self._special_ids.isdisjoint(row)
        tokens = [encoded.char_to_token(number, place) for place, _ in markers]
        if None in tokens or [row[token] for token in tokens] != [special for _, special in markers]:
            return False
        return len(markers) == sum(token in self._special_ids for token in row)

    def _encode_protected(self, prompts: Sequence[PromptParts]) -> list[list[int]]:
        """The same with the template's markers, and no others, under names that only we know."""
        if not prompts:
            return []
        names, tokenizer = self._protected

        def protect(parts: PromptParts) -> str:
            own = [self._pattern.sub(lambda marker: names[marker[0]], part) for part in parts[::2]]
            return "".join(own[number // 2] if number % 2 == 0 else part for number, part in enumerate(parts))

        encodings = tokenizer.encode_batch([protect(parts) for parts in prompts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _find_markers(self, parts: PromptParts) -> list[tuple[int, int]]:
        """The place in the joined text and the id of each special token that the template's own parts
        hold.
        """
        found, start = [], 0
        for number, part in enumerate(parts):
            if number % 2 == 0:
                if (
                    part not in self._markers
                ):  # a template has few parts, and a tokenizer may have thousands of special tokens
                    markers = self._pattern.finditer(part)
                    self._markers[part] = [
                        (marker.start(), self.special_tokens[marker[0]]) for marker in markers
                    ]
                found += [(start + place, special) for place, special in self._markers[part]]
            start += len(part)
        return found

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        return collect_special_tokens(self.hugging_face, self.end_ids)

    @cached_property
    def end_texts(self) -> tuple[str, ...]:
        """What the tokens that end an answer are called, where they are special tokens."""
        return tuple(text for text, number in self.special_tokens.items() if number in self.end_ids)

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self.special_tokens.values())

    @cached_property
    def _pattern(self) -> re.Pattern:
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @cached_property
    def _protected(self):
        """New names of the special tokens, and the tokenizer that knows them by these. Takes a second to
        make; few need it.
        """
        names = generate_secret_names(self.special_tokens)
        return names, rename_special_tokens(self.hugging_face.backend_tokenizer, names)

    def decode(self, ids: list[int]) -> str:
        """The text without special tokens, spaces exactly as they are."""
        return self.hugging_face.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def pieces(self) -> dict[int, bytes]:
        """What each token stands for, added tokens left out. Raises UserError unless the tokens are made of
        bytes.
        """
        if not self.is_byte_level():
            raise UserError(
                "needs a byte-level tokenizer, such as those of GPT-2, SmolLM2, Qwen and Llama 3",
                setting="constrain",
                remedy="leave it out",
            )
        added = self.hugging_face.get_added_vocab()
        letters = build_byte_decoder()
        return {
            number: bytes(letters[letter] for letter in token)
            for token, number in self.hugging_face.get_vocab().items()
            if token not in added
        }

    def is_byte_level(self) -> bool:
        from tokenizers.decoders import ByteLevel

        return isinstance(self.hugging_face.backend_tokenizer.decoder, ByteLevel)

    def decode_to_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """What each token adds to the text, in UTF-8, which may be a part of a letter; of an added token its
        name.
        """
        added, letters = (
            self.hugging_face.get_added_vocab(),
            build_byte_decoder() if self.is_byte_level() else {},
        )
        tokens = self.hugging_face.convert_ids_to_tokens(list(ids))
        return [
            token.encode() if token in added else convert_token_to_bytes(token, letters) for token in tokens
        ]

    def save(self, folder: Path) -> None:
        self.hugging_face.save_pretrained(folder)


def build_load_error(folder: Path, error: Exception) -> UserError:
    """What is wrong with a tokenizer that cannot be loaded, and what to do."""
    if (folder / "tokenizer.model").exists() and not (folder / "tokenizer.json").exists():
        where = repr(str(folder))
        return UserError(
            f"{folder}: its tokenizer is there as tokenizer.model alone; a tokenizer.json is needed. Convert "
            "it once: "
            '`pip install sentencepiece protobuf tiktoken`, then `python -c "from transformers import '
            "AutoTokenizer; "
            f'AutoTokenizer.from_pretrained({where}).save_pretrained({where})"`'
        )
    return UserError(f"{folder}: no usable tokenizer (tokenizer.json is missing or broken): {error}")


def read_vocab_size(path: Path) -> int | None:
    """How many entries the model's embedding has, as its configuration says; None where it says nothing."""
    config = read_json(path) if path.is_file() else None
    entries = config.get("vocab_size") if isinstance(config, dict) else None
    return entries if type(entries) is int and entries > 0 else None


def remove_tokens_without_embedding(tokenizer, vocab_size: int, folder: Path) -> None:
    """Take out the added tokens that the model has no embedding for, such as a padding token that was never
    trained.

    In a text their names are then letters like all others. Raises UserError for those that are needed: the
    end-of-text token, and what the tokenizer puts around each text.
    """
    beyond = {token for token, number in tokenizer.get_added_vocab().items() if number >= vocab_size}
    if not beyond:
        return
    if tokenizer.eos_token in beyond:
        raise UserError(
            f"{folder}: its end-of-text token {tokenizer.eos_token!r} has the id {tokenizer.eos_token_id:,}, "
            "but the model's "
            f"ids end at {vocab_size - 1:,}; correct eos_token in tokenizer_config.json"
        )
    if around := [number for number in tokenizer("")["input_ids"] if number >= vocab_size]:
        raise UserError(
            f"{folder}: its tokenizer puts {tokenizer.convert_ids_to_tokens(around[0])!r} around each text, "
            "which has the id "
            f"{around[0]:,}, but the model's ids end at {vocab_size - 1:,}; copy the tokenizer's files from "
            "the model's source again"
        )
    from tokenizers import Tokenizer as Backend

    old = tokenizer.backend_tokenizer
    parts = json.loads(old.to_str())
    parts["added_tokens"] = [token for token in parts["added_tokens"] if token["content"] not in beyond]
    if isinstance(vocabulary := parts["model"].get("vocab"), dict):
        parts["model"]["vocab"] = {
            token: number for token, number in vocabulary.items() if token not in beyond
        }
    new = Backend.from_str(json.dumps(parts))
    new.encode_special_tokens = old.encode_special_tokens
    tokenizer._tokenizer = new  # there is no public way to remove a token


def detect_bos_ids(tokenizer) -> list[int]:
    """What a `transformers` tokenizer, as it is configured, puts in front of a text."""
    text, whole = tokenizer("x", add_special_tokens=False)["input_ids"], tokenizer("x")["input_ids"]
    return next(
        (whole[:start] for start in range(len(whole)) if whole[start : start + len(text)] == text), []
    )


def read_end_ids(path: Path) -> list[int]:
    """The tokens at which the model's makers end its answers, if the file is there and names some."""
    if not path.is_file():
        return []
    config = read_json(path)
    named = config.get("eos_token_id") if isinstance(config, dict) else None
    ends: list[Any] = named if isinstance(named, list) else [named]
    if ends == [None]:
        return []
    if not all(isinstance(end, int) and not isinstance(end, bool) for end in ends):
        raise UserError(f"{path}: eos_token_id must be a number or a list of numbers, not {str(named)[:80]}")
    return ends


def convert_token_to_bytes(token: str, byte_decoder: dict[str, int]) -> bytes:
    """`letters` are those of a byte-level tokenizer; others write a space as U+2581, and a lone byte as
    <0x0A>.
    """
    if byte_decoder:
        return bytes(byte_decoder[letter] for letter in token)
    if byte := re.fullmatch("<0x([0-9A-F]{2})>", token):
        return bytes.fromhex(byte[1])
    return token.replace("\u2581", " ").encode()


def build_byte_decoder() -> dict[str, int]:
    """The letter that byte-level tokenizers write for each byte (Radford et al. 2019, section 2.2), and that
    byte.

    A byte that is a visible Latin-1 letter is written as that letter, the others, in order, as those from
    U+0100 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }
