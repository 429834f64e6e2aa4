"""A small byte-level BPE tokenizer, trained here, in the form that the program's own one has."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXTS = [
    "### Instruction:\n### Input:\n### Response:\n",
    "What is the answer? The answer is that there is none, and there are many. ",
] * 20


class SmallTokenizer:
    eos_id = 0

    def __init__(self):
        self.inner = Tokenizer(models.BPE())
        self.inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.inner.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False)
        self.inner.train_from_iterator(TEXTS, trainer)

    def encode(self, text: str) -> list[int]:
        return self.inner.encode(text).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.inner.encode_batch(texts)]

    def decode(self, ids: list[int]) -> str:
        return self.inner.decode(ids)


@cache
def small_tokenizer() -> SmallTokenizer:
    return SmallTokenizer()
