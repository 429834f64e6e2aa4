"""Prompts begin with BOS exactly if the tokenizer's own configuration adds it."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from loratune.data.template import BUILT_IN_TEMPLATES, Template
from loratune.models.tokenizer import Tokenizer
from support.small_models import save_model
from support.small_tokenizers import KINDS, build_tokenizer

texts = st.lists(
    st.sampled_from(["the", " ", "answer", "is ", "none", "\n", "42", "Ünïcode"]), min_size=1
).map("".join)
AROUND = [("", ""), ("<s>", ""), ("", "</s>"), ("<s>", "</s>"), ("<s> <|im_start|>", "")]
MADE = {(kind, *around): build_tokenizer(kind, *around) for kind in KINDS for around in AROUND[:4]}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30)
@given(instruction=texts, input=texts)
def test_prompts_equal_transformers_without_eos(kind, instruction, input):
    for (of_kind, front, behind), tokenizer in MADE.items():
        if of_kind != kind:
            continue
        for template in BUILT_IN_TEMPLATES.values():
            whole = tokenizer.hugging_face(template.render(instruction, input))["input_ids"]
            expected = whole[:-1] if behind else whole
            assert tokenizer.encode_prompts([template.split_prompt(instruction, input)]) == [expected]
            assert (expected[:1] == [tokenizer.special_tokens["<s>"]]) == bool(front)


@pytest.mark.parametrize(("front", "behind"), AROUND[:4])
def test_texts_get_no_bos_and_no_eos(front, behind):
    tokenizer = build_tokenizer("byte-level", front, behind)
    assert tokenizer.encode("the answer") == build_tokenizer("byte-level").encode("the answer")
    assert tokenizer.bos_text == front


def test_template_with_bos_gets_no_second_bos():
    own = Template("own", "<s>[A] {instruction} {input}", "<s>[A] {instruction}")
    with_bos, without = build_tokenizer("byte-level", "<s>"), build_tokenizer("byte-level")
    ids = with_bos.encode_prompts([own.split_prompt("the answer")])
    assert ids == without.encode_prompts([own.split_prompt("the answer")])
    assert ids[0].count(with_bos.special_tokens["<s>"]) == 1


def test_bos_text_in_user_input_is_not_bos():
    plain, tokenizer = BUILT_IN_TEMPLATES["plain"], build_tokenizer("byte-level", "<s>")
    (ids,) = tokenizer.encode_prompts([plain.split_prompt("<s>the answer")])
    assert ids == [tokenizer.special_tokens["<s>"], *tokenizer.encode("<s>the answer\n")]
    assert ids.count(tokenizer.special_tokens["<s>"]) == 1


def test_without_bos_adds_nothing():
    tokenizer = build_tokenizer("byte-level", "<s>", "</s>")
    parts = BUILT_IN_TEMPLATES["instruction"].split_prompt("the answer", "none")
    assert tokenizer.without_bos().encode_prompts([parts]) == build_tokenizer("byte-level").encode_prompts(
        [parts]
    )
    assert tokenizer.without_bos().end_ids == tokenizer.end_ids


@pytest.mark.parametrize("begins", ["", "<|begin|>"])
@pytest.mark.parametrize(
    "fields", [{}, {"add_bos_token": True}, {"add_bos_token": False}, {"add_eos_token": True}]
)
def test_bos_follows_the_tokenizer_configuration(tmp_path, begins, fields):
    """It goes by the post-processor in tokenizer.json."""
    save_model(tmp_path, begins=begins)
    change(tmp_path / "tokenizer_config.json", {"bos_token": "<|end|>"} | fields)
    tokenizer, reference = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids, text = reference("Hi")["input_ids"], reference("Hi", add_special_tokens=False)["input_ids"]
    assert tokenizer.bos == ids[: ids.index(text[0])]
    assert tokenizer.bos_text == begins


def change(path: Path, fields: dict) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_smollm2_has_no_bos(smollm2):
    assert smollm2.tokenizer.bos == [] and smollm2.tokenizer.bos_text == ""
