"""Tokens as bytes: what they spell is what the tokenizer's own decoding gives."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers, processors

from loratune.errors import UserError
from loratune.models.tokenizer import Tokenizer, byte_letters, bytes_of
from small_models import save_model


def test_each_byte_has_a_letter_of_its_own():
    letters = byte_letters()
    assert set(letters) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(letters.values()) == list(range(256))


@pytest.fixture(scope="module")
def pieces(smollm2):
    return smollm2.tokenizer.pieces()


# SmolLM2 has no tokens for a few control characters and for letters from U+40000 on.
@given(st.text().map(lambda text: "".join(filter(str.isprintable, text))))
@settings(max_examples=50, deadline=None)
def test_pieces_spell_the_text(smollm2, pieces, text):
    assert b"".join(pieces[token] for token in smollm2.tokenizer.encode(text)) == text.encode()


def test_each_byte_of_a_visible_text_is_a_token_of_smollm2(pieces):
    """So a text can be written to its end, wherever a token has ended."""
    needed = {
        bytes([byte]) for number in range(0x20, 0x30000) if (letter := chr(number)).isprintable() for byte in letter.encode()
    }
    assert needed <= set(pieces.values())


def test_special_tokens_are_no_pieces(smollm2, tmp_path):
    save_model(tmp_path)
    small = Tokenizer.load(tmp_path)
    for tokenizer in (small, smollm2.tokenizer):
        assert tokenizer.eos_id not in tokenizer.pieces()
    assert sorted(small.pieces().values()) == [bytes([byte]) for byte in range(256)]


def test_tokens_that_are_no_bytes_are_refused(tmp_path):
    from tokenizers import decoders

    save_model(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    tokenizer.hugging_face.backend_tokenizer.decoder = decoders.Metaspace()
    with pytest.raises(UserError, match="--constrain: needs a byte-level tokenizer"):
        tokenizer.pieces()


def adding(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer that puts a token before and one after each text unless told not to, as Llama's and Gemma's do."""
    around = processors.TemplateProcessing(single="<|end|> $A <|end|>", special_tokens=[("<|end|>", tokenizer.eos_id)])
    tokenizer.hugging_face.backend_tokenizer.post_processor = around
    return tokenizer


def test_no_token_is_added_to_a_text(tmp_path):
    save_model(tmp_path)
    plain = Tokenizer.load(tmp_path)
    other = Tokenizer(adding(Tokenizer.load(tmp_path)).hugging_face)
    assert len(other.hugging_face("Hi")["input_ids"]) == 4
    assert other.encode("Hi") == plain.encode("Hi") and len(other.encode("Hi")) == 2
    assert other.encode_batch(["Hi", "you"]) == [other.encode("Hi"), other.encode("you")]
    assert plain.bos == [] and other.bos == [plain.eos_id]


def test_a_tokenizer_without_its_file_is_refused(tmp_path):
    """One that is Python code alone has no way to tell a text from a special token."""
    from transformers import ByT5Tokenizer

    save_model(tmp_path)
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    ByT5Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"its tokenizer \(ByT5Tokenizer\) cannot be written as a tokenizer.json"):
        Tokenizer.load(tmp_path)


def test_texts_come_back_space_for_space(smollm2):
    for text in ("x != y , he said .", "the party . . . in other 'words' ?", "  two  spaces\n\n"):
        for tokenizer in (smollm2.tokenizer, cleaning(smollm2)):
            assert tokenizer.decode(tokenizer.encode(text)) == text


def cleaning(base) -> Tokenizer:
    """The tokenizer of a model whose configuration asks for tidier texts, as that of Llama 3 does."""
    return Tokenizer.load(
        base.found.folder,
        clean_up_tokenization_spaces=True,
        clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output=True,
    )


def name_an_end(folder, end):
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": end, "pad_token_id": 7}))


def test_the_end_of_text_is_the_tokenizers_whatever_other_files_say(tmp_path):
    save_model(tmp_path)
    name_an_end(tmp_path, 7)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.hugging_face.convert_ids_to_tokens(tokenizer.eos_id) == "<|end|>"


@pytest.mark.parametrize(("named", "more"), [(None, set()), (7, {7}), ([7, 9], {7, 9}), ([], set())])
def test_the_ends_that_the_makers_name_end_answers_too(tmp_path, named, more):
    save_model(tmp_path)
    name_an_end(tmp_path, named)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.end_ids == {tokenizer.eos_id} | more
    (tmp_path / "generation_config.json").unlink()
    assert Tokenizer.load(tmp_path).end_ids == {tokenizer.eos_id}


@pytest.mark.parametrize("named", ["7", [7, None], True, {"id": 7}])
def test_an_end_that_is_no_number_is_refused(tmp_path, named):
    save_model(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
    with pytest.raises(UserError, match=r"generation_config.json: eos_token_id must be a number or a list of numbers"):
        Tokenizer.load(tmp_path)


@given(st.text().map(lambda text: "".join(filter(str.isprintable, text))))
@settings(max_examples=50, deadline=None)
def test_tokens_spell_the_text_and_special_ones_their_names(smollm2, text):
    ids = [*smollm2.tokenizer.encode(text), smollm2.tokenizer.eos_id]
    assert b"".join(smollm2.tokenizer.spelled(ids)) == f"{text}<|im_end|>".encode()


def test_tokens_of_a_tokenizer_that_is_not_made_of_bytes():
    assert [bytes_of(token, {}) for token in ("▁the", "re", "<0x0A>", "<0xE2>")] == [b" the", b"re", b"\n", b"\xe2"]
