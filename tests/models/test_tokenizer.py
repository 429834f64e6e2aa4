"""The tokenizer: bytes of tokens, end-of-text, and tokens without an embedding."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import pre_tokenizers, processors

from loratune.errors import UserError
from loratune.models.load import load_model
from loratune.models.resolve import resolve_model
from loratune.models.token_bytes import build_byte_decoder, convert_token_to_bytes
from loratune.models.tokenizer import Tokenizer
from support.small_models import save_model


def test_byte_decoder_is_one_to_one():
    letters = build_byte_decoder()
    assert set(letters) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(letters.values()) == list(range(256))


@pytest.fixture(scope="module")
def pieces(smollm2):
    return smollm2.tokenizer.get_token_bytes()


# SmolLM2 has no tokens for a few control characters and for letters from U+40000 on.
@given(st.text().map(lambda text: "".join(filter(str.isprintable, text))))
@settings(max_examples=50, deadline=None)
def test_token_bytes_spell_the_text(smollm2, pieces, text):
    assert b"".join(pieces[token] for token in smollm2.tokenizer.encode(text)) == text.encode()


def test_smollm2_has_a_token_for_each_printable_byte(pieces):
    """So a text can be written to its end, wherever a token has ended."""
    needed = {
        bytes([byte])
        for number in range(0x20, 0x30000)
        if (letter := chr(number)).isprintable()
        for byte in letter.encode()
    }
    assert needed <= set(pieces.values())


def test_token_bytes_exclude_special_tokens(smollm2, tmp_path):
    save_model(tmp_path)
    small = Tokenizer.load(tmp_path)
    for tokenizer in (small, smollm2.tokenizer):
        assert tokenizer.eos_id not in tokenizer.get_token_bytes()
    assert sorted(small.get_token_bytes().values()) == [bytes([byte]) for byte in range(256)]


def test_token_bytes_need_a_byte_level_tokenizer(tmp_path):
    from tokenizers import decoders

    save_model(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    tokenizer.hugging_face.backend_tokenizer.decoder = decoders.Metaspace()
    with pytest.raises(UserError, match="constrain: needs a byte-level tokenizer"):
        tokenizer.get_token_bytes()


def add_tokens_around_texts(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer that puts a token before and one after each text unless told not to, as Llama's and Gemma's
    do.
    """
    around = processors.TemplateProcessing(
        single="<|end|> $A <|end|>", special_tokens=[("<|end|>", tokenizer.eos_id)]
    )
    tokenizer.hugging_face.backend_tokenizer.post_processor = around
    return tokenizer


def test_encoding_a_text_adds_no_token(tmp_path):
    save_model(tmp_path)
    plain = Tokenizer.load(tmp_path)
    other = Tokenizer(add_tokens_around_texts(Tokenizer.load(tmp_path)).hugging_face)
    assert len(other.hugging_face("Hi")["input_ids"]) == 4
    assert other.encode("Hi") == plain.encode("Hi") and len(other.encode("Hi")) == 2
    assert other.encode_batch(["Hi", "you"]) == [other.encode("Hi"), other.encode("you")]
    assert plain.bos == [] and other.bos == [plain.eos_id]


def test_missing_tokenizer_file_is_refused(tmp_path):
    """One that is Python code alone has no way to tell a text from a special token."""
    from transformers import ByT5Tokenizer

    save_model(tmp_path)
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    ByT5Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"its tokenizer \(ByT5Tokenizer\) cannot be written as a tokenizer.json"
    ):
        Tokenizer.load(tmp_path)


def test_decoding_keeps_spaces(smollm2):
    for text in ("x != y , he said .", "the party . . . in other 'words' ?", "  two  spaces\n\n"):
        for tokenizer in (smollm2.tokenizer, load_with_clean_up(smollm2)):
            assert tokenizer.decode(tokenizer.encode(text)) == text


def load_with_clean_up(base) -> Tokenizer:
    """The tokenizer of a model whose configuration asks for tidier texts, as that of Llama 3 does."""
    return Tokenizer.load(
        base.resolved.folder,
        clean_up_tokenization_spaces=True,
        clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output=True,
    )


def name_an_end(folder, end):
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": end, "pad_token_id": 7}))


def test_eos_comes_from_the_tokenizer(tmp_path):
    save_model(tmp_path)
    name_an_end(tmp_path, 7)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.hugging_face.convert_ids_to_tokens(tokenizer.eos_id) == "<|end|>"


@pytest.mark.parametrize(("named", "more"), [(None, set()), (7, {7}), ([7, 9], {7, 9}), ([], set())])
def test_generation_config_adds_end_ids(tmp_path, named, more):
    save_model(tmp_path)
    name_an_end(tmp_path, named)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.end_ids == {tokenizer.eos_id} | more
    (tmp_path / "generation_config.json").unlink()
    assert Tokenizer.load(tmp_path).end_ids == {tokenizer.eos_id}


@pytest.mark.parametrize("named", ["7", [7, None], True, {"id": 7}])
def test_invalid_eos_token_id_is_refused(tmp_path, named):
    save_model(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
    with pytest.raises(
        UserError, match=r"generation_config.json: eos_token_id must be a number or a list of numbers"
    ):
        Tokenizer.load(tmp_path)


@given(st.text().map(lambda text: "".join(filter(str.isprintable, text))))
@settings(max_examples=50, deadline=None)
def test_decoded_bytes_spell_text_and_special_tokens(smollm2, text):
    ids = [*smollm2.tokenizer.encode(text), smollm2.tokenizer.eos_id]
    assert b"".join(smollm2.tokenizer.decode_to_bytes(ids)) == f"{text}<|im_end|>".encode()


def test_decoded_bytes_of_a_sentencepiece_tokenizer():
    assert [convert_token_to_bytes(token, {}) for token in ("▁the", "re", "<0x0A>", "<0xE2>")] == [
        b" the",
        b"re",
        b"\n",
        b"\xe2",
    ]


def edit(path, **changes) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))


def add_tokens(folder, *tokens: str) -> int:
    """Put tokens behind the vocabulary, as `add_tokens` does without a larger embedding; returns how many ids
    the model has.
    """
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    entries = json.loads((folder / "config.json").read_text())["vocab_size"]
    how = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer["added_tokens"] += [
        {"id": entries + place, "content": token, **how} for place, token in enumerate(tokens)
    ]
    path.write_text(json.dumps(tokenizer))
    return entries


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    """A tokenizer as it was delivered, and one with tokens that the model has no embedding for."""
    plain, more = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("padded")
    for folder in (plain, more):
        save_model(folder)
    entries = add_tokens(more, "<pad>", "[MASK]")
    edit(more / "tokenizer_config.json", pad_token="<pad>", mask_token="[MASK]")
    return Tokenizer.load(plain), Tokenizer.load(more), entries


texts = st.lists(
    st.sampled_from(["<pad>", "[MASK]", "<|end|>", "a", " ", "<pa", "d>"]) | st.text(max_size=3)
).map("".join)


@given(texts.filter(lambda text: text.isprintable() or "\n" in text))
@settings(max_examples=100, deadline=None)
def test_token_without_embedding_is_ordinary_text(padded, text):
    plain, more, entries = padded
    assert more.encode(text) == plain.encode(text) and max(more.encode(text), default=0) < entries
    assert more.encode_batch([text]) == plain.encode_batch([text])


def test_tokenizer_with_unused_tokens_loads_and_saves(padded, tmp_path):
    plain, more, entries = padded
    assert (
        more.size == plain.size == entries and more.eos_id == plain.eos_id and more.end_ids == plain.end_ids
    )
    assert more.get_token_bytes() == plain.get_token_bytes()
    more.save(tmp_path)
    edit(tmp_path / "config.json", vocab_size=entries)
    assert Tokenizer.load(tmp_path).encode("a<pad>b") == plain.encode("a<pad>b")


def test_added_token_with_an_embedding_is_kept(tmp_path):
    save_model(tmp_path)
    entries = add_tokens(tmp_path, "<pad>", "<beyond>")
    edit(tmp_path / "config.json", vocab_size=entries + 1)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.hugging_face.get_added_vocab() == {"<|end|>": 0, "<pad>": entries}


def test_model_with_unused_tokens_loads(tmp_path):
    save_model(tmp_path)
    add_tokens(tmp_path, "<pad>")
    base = load_model(resolve_model(str(tmp_path)))
    assert base.tokenizer.size == base.decoder.spec.vocab_size


def test_eos_without_embedding_is_refused(tmp_path):
    save_model(tmp_path)
    entries = add_tokens(tmp_path, "<end>")
    edit(tmp_path / "tokenizer_config.json", eos_token="<end>")
    with pytest.raises(
        UserError,
        match=rf"end-of-text token '<end>' has the id {entries}, but the model's ids end at {entries - 1}",
    ):
        Tokenizer.load(tmp_path)
    edit(tmp_path / "tokenizer_config.json", eos_token="<|end|>")  # as the message says
    assert Tokenizer.load(tmp_path).eos_id == 0


def test_bos_without_embedding_is_refused(tmp_path):
    save_model(tmp_path)
    entries = add_tokens(tmp_path, "<start>")
    around = processors.TemplateProcessing(single="<start> $A", special_tokens=[("<start>", entries)])
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    backend.post_processor = around
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=f"puts '<start>' around each text, which has the id {entries}"):
        Tokenizer.load(tmp_path)


def test_vocabulary_larger_than_the_embedding_is_refused(tmp_path):
    save_model(tmp_path)
    path = tmp_path / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["ab"] = 257
    tokenizer["model"]["merges"] = [["a", "b"]]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(
        UserError, match="ids up to 257, the model only up to 256; they do not belong together"
    ):
        load_model(resolve_model(str(tmp_path)))


def test_sentencepiece_only_tokenizer_is_refused_with_a_remedy(tmp_path):
    """The way was tried with transformers 5.23, on a file of sentencepiece; its packages are not among the
    tests' own.
    """
    save_model(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>")
    with pytest.raises(
        UserError, match=r"is there as tokenizer.model alone; a tokenizer.json is needed"
    ) as refused:
        Tokenizer.load(tmp_path)
    code = str(refused.value).split("`")[3].removeprefix('python -c "').removesuffix('"')
    compile(code, "remedy", "exec")
    assert f"AutoTokenizer.from_pretrained('{tmp_path}').save_pretrained('{tmp_path}')" in code


def awkward(folder) -> None:
    """What a tokenizer's and a model's files can hold that other libraries speak of."""
    save_model(folder)
    edit(
        folder / "tokenizer_config.json",
        tokenizer_class="LlamaTokenizer",
        model_max_length=5,
        clean_up_tokenization_spaces=True,
    )
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4, "of_no_matter": 3}
    edit(folder / "config.json", rope_parameters=scaled, bos_token_id=99999)


def large_mistral(folder) -> None:
    """Large enough for transformers to warn of an expression that some of Mistral's files have."""
    save_model(folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"] |= {f"token {number}": number for number in range(257, 100_100)}
    path.write_text(json.dumps(tokenizer))
    edit(folder / "config.json", model_type="mistral", transformers_version="4.40.0", vocab_size=100_100)


@pytest.mark.parametrize("save", [awkward, large_mistral])
def test_loading_prints_no_library_warnings(tmp_path, save):
    """In a process of its own, in which the libraries have their own settings."""
    save(tmp_path)
    program = (
        "import sys; from pathlib import Path; from loratune.models.tokenizer import Tokenizer\n"
        "tokenizer = Tokenizer.load(Path(sys.argv[1]))\n"
        "tokenizer.encode('a longer text'); tokenizer.encode_batch(['a longer text'])\n"
        "assert tokenizer.decode(tokenizer.encode('a . b')) == 'a . b'\n"
        "from loratune.models.load import read_weights\n"
        "if sys.argv[2] == 'awkward': read_weights(Path(sys.argv[1]))\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRANSFORMERS")}
    command = [sys.executable, "-c", program, str(tmp_path), save.__name__]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
