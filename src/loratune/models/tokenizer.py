"""Tokenizer: text to token ids and back.

Special tokens in a text stay text, and prompts begin with BOS if the tokenizer's own configuration adds one.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from loratune.errors import UserError
from loratune.models.chat_encoding import Encoded, Span, find_spans
from loratune.models.special_tokens import (
    collect_special_tokens,
    generate_secret_names,
    rename_special_tokens,
)
from loratune.models.token_bytes import build_byte_decoder, convert_token_to_bytes
from loratune.models.tokenizer_files import (
    build_load_error,
    detect_bos_ids,
    read_end_ids,
    read_vocab_size,
    remove_tokens_without_embedding,
)
from loratune.system.quiet import quiet_libraries

# A prompt in parts: the template's text and the user's in turn, starting with the template's.
PromptParts = Sequence[str]


class Tokenizer:
    """Encodes text to token ids and decodes ids to text.

    Only a template's own markers become special tokens; the same marker in any other text stays text.
    """

    def __init__(
        self,
        tokenizer,
        extra_end_ids: Iterable[int] = (),
        bos: Sequence[int] | None = None,
        *,
        eos_id: int | None = None,
    ):
        self.hugging_face = tokenizer
        # Each response that is trained on ends with it.
        self.eos_id: int = tokenizer.eos_token_id if eos_id is None else eos_id
        # Any of these ends an answer: some base models were trained with other tokens besides EOS.
        self.end_ids = frozenset([self.eos_id, tokenizer.eos_token_id, *extra_end_ids])
        # The ids that every prompt begins with, usually one or none.
        self.bos = detect_bos_ids(tokenizer) if bos is None else list(bos)
        self._markers: dict[str, list[tuple[int, int]]] = {}

    @classmethod
    def load(cls, folder: Path, **options) -> "Tokenizer":
        """Load the tokenizer of a model folder.

        Args:
            folder: with the tokenizer's files.
            options: passed on to `AutoTokenizer.from_pretrained`.

        Raises:
            UserError: there is no usable tokenizer in the folder.
        """
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
        if vocab_size := read_vocab_size(folder / "config.json"):
            remove_tokens_without_embedding(tokenizer, vocab_size, folder)
        return cls(tokenizer, read_end_ids(folder / "generation_config.json"))

    @property
    def chat_template(self) -> str | None:
        """The model's own prompt format, a program in Jinja; None for a model without one."""
        template = self.hugging_face.chat_template
        return template.get("default") if isinstance(template, dict) else template

    @property
    def template_tokens(self) -> dict[str, str]:
        """The special tokens that chat templates may name, such as bos_token."""
        tokens = self.hugging_face.special_tokens_map
        return {name: token for name, token in tokens.items() if isinstance(token, str)}

    @property
    def size(self) -> int:
        """The largest token id plus one."""
        return 1 + max(self.hugging_face.get_vocab().values())

    @property
    def bos_text(self) -> str:
        """The text of the BOS tokens; empty without BOS."""
        return "".join(self.hugging_face.convert_ids_to_tokens(self.bos))

    def without_bos(self) -> "Tokenizer":
        """Return this tokenizer without BOS in front of prompts."""
        return Tokenizer(self.hugging_face, self.end_ids, bos=(), eos_id=self.eos_id)

    def for_chat(self, end_token: str) -> "Tokenizer":
        """Return this tokenizer for a chat template, which writes BOS itself, and ends answers so."""
        end_id = self.special_tokens[end_token]
        return Tokenizer(self.hugging_face, self.end_ids, bos=(), eos_id=end_id)

    def for_text(self) -> "Tokenizer":
        """Return this tokenizer as it is configured, also where it is one for a chat template."""
        return Tokenizer(self.hugging_face, self.end_ids, self.text_bos)

    @cached_property
    def text_bos(self) -> list[int]:
        """The ids before a plain text, also where a chat template writes BOS itself."""
        return detect_bos_ids(self.hugging_face)

    @property
    def text_eos_id(self) -> int:
        """The id behind a plain text, also where a chat template ends answers otherwise."""
        return self.hugging_face.eos_token_id

    def encode(self, text: str) -> list[int]:
        """Encode a text, without special tokens."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode texts, without special tokens."""
        return self._encode_parts([("", text) for text in texts])

    def encode_prompts(self, prompts: Sequence[PromptParts]) -> list[list[int]]:
        """Encode prompts and prepend BOS, if there is one, unless the template begins with it."""
        batch = self._encode_parts(prompts)
        return [ids if ids[: len(self.bos)] == self.bos else [*self.bos, *ids] for ids in batch]

    def _encode_parts(self, prompts: Sequence[PromptParts]) -> list[list[int]]:
        """Encode each prompt as one text, in which only the template's own markers are special tokens."""
        if not prompts:
            return []
        encoding = self.hugging_face(["".join(parts) for parts in prompts], add_special_tokens=False)
        batch = encoding["input_ids"]
        unsafe = [
            index
            for index, parts in enumerate(prompts)
            if not self._has_only_template_markers(encoding, index, parts)
        ]
        protected = self._encode_protected([prompts[index] for index in unsafe])
        for index, ids in zip(unsafe, protected, strict=True):
            batch[index] = ids
        return batch

    def _has_only_template_markers(self, encoding, index: int, parts: PromptParts) -> bool:
        """Return whether the special tokens of one prompt are the template's markers, each in its place."""
        ids, markers = encoding["input_ids"][index], self._find_template_markers(parts)
        if not markers:
            return self._special_ids.isdisjoint(ids)
        positions = [encoding.char_to_token(index, start) for start, _ in markers]
        if None in positions or [ids[position] for position in positions] != [id_ for _, id_ in markers]:
            return False
        return len(markers) == sum(id_ in self._special_ids for id_ in ids)

    def encode_spans(self, texts: Sequence[tuple[PromptParts, Sequence[Span]]]) -> list[Encoded]:
        """Encode texts, without BOS, and find the tokens of their spans.

        Args:
            texts: the parts of each text, and spans of characters in the joined parts, in order.

        Returns:
            Of each text the ids, and for each span the first of its tokens and the one after its last; see
            `chat_encoding.find_spans`.
        """
        encoded = self._encode_with_offsets([parts for parts, _ in texts])
        return [
            find_spans(one, parts, spans, lambda piece: self._encode_with_offsets([piece])[0])
            for one, (parts, spans) in zip(encoded, texts, strict=True)
        ]

    def _encode_with_offsets(self, prompts: Sequence[PromptParts]) -> list[Encoded]:
        """Return each prompt's ids, and for each id the characters of the joined parts that it stands for."""
        if not prompts:
            return []
        joined = ["".join(parts) for parts in prompts]
        encoding = self.hugging_face(joined, add_special_tokens=False, return_offsets_mapping=True)
        return [
            (ids, offsets)
            if self._has_only_template_markers(encoding, index, parts)
            else self._encode_protected_with_offsets(parts)
            for index, (ids, offsets, parts) in enumerate(
                zip(encoding["input_ids"], encoding["offset_mapping"], prompts, strict=True)
            )
        ]

    def _encode_protected_with_offsets(self, parts: PromptParts) -> Encoded:
        protected, places = self._protect(parts)
        _, backend = self._renamed_tokenizer
        encoded = backend.encode(protected, add_special_tokens=False)
        return encoded.ids, [(places[start], places[stop]) for start, stop in encoded.offsets]

    def _protect(self, parts: PromptParts) -> tuple[str, list[int]]:
        """Write the template's markers under their secret names; also return each character's old place."""
        names, _ = self._renamed_tokenizer
        pieces: list[str] = []
        places: list[int] = []
        start = 0
        for index, part in enumerate(parts):
            last = 0
            for marker in self._marker_pattern.finditer(part) if index % 2 == 0 else ():
                pieces += [part[last : marker.start()], names[marker[0]]]
                places += range(start + last, start + marker.start())
                places += [start + marker.start()] * len(names[marker[0]])
                last = marker.end()
            pieces.append(part[last:])
            places += range(start + last, start + len(part))
            start += len(part)
        return "".join(pieces), [*places, start]

    def _encode_protected(self, prompts: Sequence[PromptParts]) -> list[list[int]]:
        """Encode prompts with the template's markers renamed, so that any others stay text."""
        if not prompts:
            return []
        names, tokenizer = self._renamed_tokenizer

        def protect(parts: PromptParts) -> str:
            return "".join(
                self._marker_pattern.sub(lambda marker: names[marker[0]], part) if index % 2 == 0 else part
                for index, part in enumerate(parts)
            )

        encodings = tokenizer.encode_batch([protect(parts) for parts in prompts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _find_template_markers(self, parts: PromptParts) -> list[tuple[int, int]]:
        """Return the special tokens in the template's parts: each one's start in the prompt, and its id."""
        markers, start = [], 0
        for index, part in enumerate(parts):
            if index % 2 == 0:
                markers += [(start + offset, id_) for offset, id_ in self._find_markers(part)]
            start += len(part)
        return markers

    def _find_markers(self, part: str) -> list[tuple[int, int]]:
        """Return the special tokens in one part of a template: each one's start in it, and its id."""
        # Kept, because a template has few parts, while a tokenizer may have thousands of special tokens.
        if part not in self._markers:
            self._markers[part] = [
                (match.start(), self.special_tokens[match[0]])
                for match in self._marker_pattern.finditer(part)
            ]
        return self._markers[part]

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """The special tokens' ids by their texts."""
        return collect_special_tokens(self.hugging_face, self.end_ids)

    @cached_property
    def end_texts(self) -> tuple[str, ...]:
        """The texts of the tokens that end an answer, as far as they are special tokens."""
        return tuple(text for text, id_ in self.special_tokens.items() if id_ in self.end_ids)

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self.special_tokens.values())

    @cached_property
    def _marker_pattern(self) -> re.Pattern:
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @cached_property
    def _renamed_tokenizer(self):
        """The special tokens' secret names, and a tokenizer that has them; building it takes a second."""
        names = generate_secret_names(self.special_tokens)
        return names, rename_special_tokens(self.hugging_face.backend_tokenizer, names)

    def decode(self, ids: list[int]) -> str:
        """Decode ids to text, without special tokens and with the spaces exactly as they are."""
        return self.hugging_face.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def get_token_bytes(self) -> dict[int, bytes]:
        """Return the bytes of each token by its id, without added tokens.

        Raises:
            UserError: the tokenizer is not byte-level.
        """
        if not self.is_byte_level():
            raise UserError(
                "needs a byte-level tokenizer, such as those of GPT-2, SmolLM2, Qwen and Llama 3",
                setting="constrain",
                remedy="leave it out",
            )
        added = self.hugging_face.get_added_vocab()
        byte_decoder = build_byte_decoder()
        return {
            id_: bytes(byte_decoder[character] for character in token)
            for token, id_ in self.hugging_face.get_vocab().items()
            if token not in added
        }

    def is_byte_level(self) -> bool:
        from tokenizers.decoders import ByteLevel

        return isinstance(self.hugging_face.backend_tokenizer.decoder, ByteLevel)

    def decode_to_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """Decode each id to its UTF-8 bytes, which may be part of a character; an added token to its text."""
        added = self.hugging_face.get_added_vocab()
        byte_decoder = build_byte_decoder() if self.is_byte_level() else {}
        tokens = self.hugging_face.convert_ids_to_tokens(list(ids))
        return [
            token.encode() if token in added else convert_token_to_bytes(token, byte_decoder)
            for token in tokens
        ]

    def save(self, folder: Path, chat_template: str | None = None) -> None:
        """Save the tokenizer's files; with a chat template, where the prompts have another than its own."""
        own = self.hugging_face.chat_template
        self.hugging_face.chat_template = own if chat_template is None else chat_template
        try:
            self.hugging_face.save_pretrained(folder)
        finally:
            self.hugging_face.chat_template = own
