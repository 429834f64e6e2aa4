"""Small tokenizers of every common kind, each with some special tokens."""

import json
from collections.abc import Callable
from functools import cache

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from loratune.models.tokenizer import Tokenizer

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "[END]"]
TEXTS = ["### Instruction:\n### Input:\n### Response:\n"] * 20 + [
    "What is the answer? </s The answer is none. <|im_ end|> [END s> ]"
] * 20
LETTERS = sorted(set("".join(TEXTS)) | set("▁abcdefghijklmnopqrstuvwxyz_"))


def byte_level(specials: list[str | AddedToken] | None = None, in_vocabulary: bool = True) -> Backend:
    """As GPT-2's; the special tokens lie in the vocabulary, or after it as Qwen's do."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    first = (specials or SPECIAL) if in_vocabulary else []
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=first, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    if not in_vocabulary:
        backend.add_special_tokens(specials or SPECIAL)
    backend.add_tokens(["<think>"])  # not special
    return backend


def sentence_piece(prepend: str = "first", legacy: bool = False) -> Backend:
    """As Llama 2's: spaces are written ▁, unknown letters as their bytes, and its merges can make an end
    marker.
    """
    backend = Backend(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trainer = trainers.BpeTrainer(
        vocab_size=130, special_tokens=SPECIAL, initial_alphabet=LETTERS, show_progress=False
    )
    backend.train_from_iterator([text.replace(" ", "▁") for text in TEXTS], trainer)
    whole = json.loads(backend.to_str())
    vocabulary, merges = whole["model"]["vocab"], whole["model"]["merges"]
    for left, right in [("<", "/"), ("s", ">"), ("</", "s>")]:
        vocabulary.setdefault(left + right, len(vocabulary))
        merges.insert(0, [left, right])
    merges[:] = sorted(merges, key=["</", "s>"].__eq__)  # that one last
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    backend = Backend.from_str(json.dumps(whole))
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.add_special_tokens([AddedToken("</s>", normalized=True)])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(spaces)
    return backend


def unigram() -> Backend:
    """As T5's, with pieces for the special tokens that it would choose by itself, and a normalizer that makes
    such texts.
    """
    pieces = (
        [(text, 0.0) for text in SPECIAL]
        + [(letter, -5.0) for letter in LETTERS]
        + [("▁the", -3.0), ("answer", -4.0)]
    )
    backend = Backend(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(SPECIAL)
    return backend


def lower_case() -> Backend:
    backend = byte_level()
    backend.normalizer = normalizers.Lowercase()
    backend.add_special_tokens([AddedToken("[END]", normalized=True)])
    return backend


def whole_words() -> Backend:
    words = [*SPECIAL, *sorted({word for text in TEXTS for word in text.split()} - set(SPECIAL))]
    backend = Backend(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(SPECIAL)
    return backend


def stripping() -> Backend:
    return byte_level(
        ["<unk>", "<s>", "</s>", "<|im_start|>", AddedToken("<|im_end|>", lstrip=True, rstrip=True), "[END]"]
    )


KINDS: dict[str, Callable[[], Backend]] = {
    "byte-level": byte_level,
    "specials after the vocabulary": lambda: byte_level(in_vocabulary=False),
    "stripping": stripping,
    "lower case": lower_case,
    "SentencePiece, first": sentence_piece,
    "SentencePiece, always": lambda: sentence_piece("always"),
    "SentencePiece, legacy": lambda: sentence_piece(legacy=True),
    "Unigram": unigram,
    "whole words": whole_words,
}
SPELLING = [
    kind for kind in KINDS if kind not in ("stripping", "lower case", "Unigram", "whole words")
]  # give back each text


def build_tokenizer(kind: str, front: str = "", behind: str = "") -> Tokenizer:
    """Build a tokenizer that puts the special tokens `front` and `behind`, if given, around each text."""
    backend = KINDS[kind]()
    if front or behind:
        around = [(text, backend.token_to_id(text)) for text in (front, behind) if text]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{front} $A {behind}".strip(), special_tokens=around
        )
    names = {"eos_token": "</s>", "unk_token": "<unk>", "bos_token": "<s>"}
    return Tokenizer(
        PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=SPECIAL[3:], **names)
    )


get_tokenizer = cache(build_tokenizer)
