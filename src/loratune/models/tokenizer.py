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
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
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

    def save(self, folder: Path) -> None:
        self.hugging_face.save_pretrained(folder)
