"""The model's own tokenizer, adding nothing of its own accord."""

from pathlib import Path

from loratune.errors import UserError


class Tokenizer:
    """Text to ids and back. No beginning-of-text or other special token is ever added."""

    def __init__(self, tokenizer):
        self.hugging_face = tokenizer
        self.eos_id: int = tokenizer.eos_token_id

    @classmethod
    def load(cls, folder: Path, **options) -> "Tokenizer":
        """Raises UserError when the folder holds no usable tokenizer."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
        except Exception as error:  # whatever transformers and tokenizers raise for a broken file
            raise UserError(f"{folder}: no usable tokenizer (tokenizer.json is missing or broken): {error}") from error
        if tokenizer.eos_token_id is None:
            raise UserError(f"{folder}: the tokenizer names no end-of-text token (eos_token), so answers could not end")
        return cls(tokenizer)

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
        from tokenizers.decoders import ByteLevel

        if not isinstance(self.hugging_face.backend_tokenizer.decoder, ByteLevel):
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

    def save(self, folder: Path) -> None:
        self.hugging_face.save_pretrained(folder)


def byte_letters() -> dict[str, int]:
    """The letter that byte-level tokenizers write for each byte (Radford et al. 2019, section 2.2), and that byte.

    A byte that is a visible Latin-1 letter is written as that letter, the others, in order, as those from U+0100 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + place): byte for place, byte in enumerate(others)}
