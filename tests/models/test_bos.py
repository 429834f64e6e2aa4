"""Prompts begin with BOS exactly where the tokenizer's own configuration puts it in front of a text."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from loratune.data.template import BUILT_IN_TEMPLATES, Template
from loratune.models.tokenizer import Tokenizer
from support.small_models import save_model
from support.small_tokenizers import KINDS, make

texts = st.lists(
    st.sampled_from(["the", " ", "answer", "is ", "none", "\n", "42", "Ünïcode"]), min_size=1
).map("".join)
AROUND = [("", ""), ("<s>", ""), ("", "</s>"), ("<s>", "</s>"), ("<s> <|im_start|>", "")]
MADE = {(kind, *around): make(kind, *around) for kind in KINDS for around in AROUND[:4]}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30)
@given(instruction=texts, input=texts)
def test_prompts_are_what_transformers_gives_without_an_end(kind, instruction, input):
    for (of_kind, front, behind), tokenizer in MADE.items():
        if of_kind != kind:
            continue
        for template in BUILT_IN_TEMPLATES.values():
            whole = tokenizer.hugging_face(template.render(instruction, input))["input_ids"]
            expected = whole[:-1] if behind else whole
            assert tokenizer.encode_prompts([template.split_prompt(instruction, input)]) == [expected]
            assert (expected[:1] == [tokenizer.special_tokens["<s>"]]) == bool(front)


@pytest.mark.parametrize(("front", "behind"), AROUND[:4])
def test_a_text_that_is_no_prompt_begins_and_ends_with_itself(front, behind):
    tokenizer = make("byte-level", front, behind)
    assert tokenizer.encode("the answer") == make("byte-level").encode("the answer")
    assert tokenizer.bos_text == front


def test_a_template_that_brings_its_own_gets_no_second_one():
    own = Template("own", "<s>[A] {instruction} {input}", "<s>[A] {instruction}")
    with_bos, without = make("byte-level", "<s>"), make("byte-level")
    ids = with_bos.encode_prompts([own.split_prompt("the answer")])
    assert ids == without.encode_prompts([own.split_prompt("the answer")])
    assert ids[0].count(with_bos.special_tokens["<s>"]) == 1


def test_a_text_that_begins_with_its_name_is_no_bos():
    plain, tokenizer = BUILT_IN_TEMPLATES["plain"], make("byte-level", "<s>")
    (ids,) = tokenizer.encode_prompts([plain.split_prompt("<s>the answer")])
    assert ids == [tokenizer.special_tokens["<s>"], *tokenizer.encode("<s>the answer\n")]
    assert ids.count(tokenizer.special_tokens["<s>"]) == 1


def test_without_bos_is_as_it_was_before():
    tokenizer = make("byte-level", "<s>", "</s>")
    parts = BUILT_IN_TEMPLATES["instruction"].split_prompt("the answer", "none")
    assert tokenizer.without_bos().encode_prompts([parts]) == make("byte-level").encode_prompts([parts])
    assert tokenizer.without_bos().end_ids == tokenizer.end_ids


@pytest.mark.parametrize("begins", ["", "<|begin|>"])
@pytest.mark.parametrize(
    "told", [{}, {"add_bos_token": True}, {"add_bos_token": False}, {"add_eos_token": True}]
)
def test_what_transformers_reads_from_a_folder_decides(tmp_path, begins, told):
    """It goes by the post-processor in tokenizer.json."""
    save_model(tmp_path, begins=begins)
    change(tmp_path / "tokenizer_config.json", {"bos_token": "<|end|>"} | told)
    tokenizer, reference = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids, text = reference("Hi")["input_ids"], reference("Hi", add_special_tokens=False)["input_ids"]
    assert tokenizer.bos == ids[: ids.index(text[0])]
    assert tokenizer.bos_text == begins


def change(path: Path, fields: dict) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_the_quickstarts_model_has_none(smollm2):
    assert smollm2.tokenizer.bos == [] and smollm2.tokenizer.bos_text == ""
