"""No text becomes a special token, with any kind of tokenizer."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from loratune.data.template import BUILT_IN_TEMPLATES, Template
from loratune.models.special_tokens import generate_secret_names, rename_special_tokens
from loratune.models.tokenizer import Tokenizer
from support.small_models import save_model
from support.small_tokenizers import KINDS, SPECIAL, SPELLING, build_tokenizer, get_tokenizer

MARKED = Template("marked", "<s>[A] {instruction}\n{input} </s>[END]", "<s>[A] {instruction} </s>[END]")
TEMPLATES = [*BUILT_IN_TEMPLATES.values(), MARKED]
ORDINARY = [
    "the",
    " ",
    "answer",
    "is ",
    "none",
    "\n",
    "<",
    "|",
    ">",
    "/s",
    "[A]",
    "<think>",
    "42",
    "Ünïcode",
    "🙂",
    "\t",
    "<s ",
]
# Their names, what some normalizers make them of, and halves.
FORBIDDEN = [*SPECIAL, "＜s＞", "＜/s＞", "[end]", "<|im_", "end|>", "</", "s>", "[", "END]"]  # noqa: RUF001
ordinary = (
    st.lists(st.sampled_from(ORDINARY), max_size=12)
    .map("".join)
    .filter(lambda text: not any(special in text for special in SPECIAL))
)
anything = st.lists(
    st.sampled_from([*ORDINARY, *FORBIDDEN]) | st.characters(exclude_categories=["Cs"]), max_size=12
).map("".join)
kinds = pytest.mark.parametrize("kind", KINDS)


def encode_with_transformers(tokenizer: Tokenizer, text: str) -> list[int]:
    """As it always was."""
    return tokenizer.hugging_face(text, add_special_tokens=False)["input_ids"]


def special_in(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """Without the one for unknown letters, which is an answer to any text."""
    known = set(tokenizer.special_tokens.values()) - {tokenizer.hugging_face.unk_token_id}
    return [token for token in ids if token in known]


@kinds
def test_special_tokens_are_collected(kind):
    tokenizer = get_tokenizer(kind)
    assert set(tokenizer.special_tokens) == set(SPECIAL)
    assert {
        text: tokenizer.hugging_face.convert_tokens_to_ids(text) for text in SPECIAL
    } == tokenizer.special_tokens
    assert tokenizer.end_texts == ("</s>",)


@kinds
@settings(max_examples=40)
@given(instruction=ordinary, input=ordinary)
def test_text_without_special_tokens_is_encoded_as_by_transformers(kind, instruction, input):
    tokenizer = get_tokenizer(kind)
    assert tokenizer.encode(instruction) == encode_with_transformers(tokenizer, instruction)
    assert tokenizer.encode_batch([instruction, input]) == [
        encode_with_transformers(tokenizer, text) for text in (instruction, input)
    ]
    for template in TEMPLATES:
        assert tokenizer.encode_prompts([template.split_prompt(instruction, input)]) == [
            encode_with_transformers(tokenizer, template.render(instruction, input))
        ]


@kinds
@settings(max_examples=40)
@given(instruction=ordinary, input=ordinary)
def test_renamed_tokenizer_gives_the_same_ids(kind, instruction, input):
    """So that a row in which somebody wrote such a name is otherwise like all others."""
    tokenizer = get_tokenizer(kind)
    for template in TEMPLATES:
        assert tokenizer._encode_protected([template.split_prompt(instruction, input)]) == [
            encode_with_transformers(tokenizer, template.render(instruction, input))
        ]


@kinds
def test_renamed_tokenizer_is_built_only_when_needed(kind):
    """It takes a second to make."""
    tokenizer = build_tokenizer(kind)
    for template in TEMPLATES:
        tokenizer.encode_prompts(
            [template.split_prompt("the answer", "is none"), template.split_prompt("none")]
        )
    # Some do not know every letter, or word, and an unknown one becomes <unk>.
    assert ("_renamed_tokenizer" in vars(tokenizer)) == (kind in ("Unigram", "whole words"))


@kinds
@given(instruction=anything, input=anything)
def test_user_text_never_becomes_a_special_token(kind, instruction, input):
    tokenizer = get_tokenizer(kind)
    assert special_in(tokenizer, tokenizer.encode(instruction)) == []
    for template in TEMPLATES:
        (ids,) = tokenizer.encode_prompts([template.split_prompt(instruction, input)])
        empty = encode_with_transformers(tokenizer, template.render("none", input and "none"))
        assert special_in(tokenizer, ids) == special_in(tokenizer, empty)


@kinds
@pytest.mark.parametrize("text", SPECIAL)
def test_special_token_names_in_text_stay_text(kind, text):
    tokenizer = get_tokenizer(kind)
    assert tokenizer.special_tokens[text] in encode_with_transformers(tokenizer, text)  # which is the error
    for written in (text, f"the {text} answer", 3 * text):
        assert special_in(tokenizer, tokenizer.encode(written)) == []
    if kind != "whole words":
        assert tokenizer.hugging_face.unk_token_id not in tokenizer.encode(text)


@pytest.mark.parametrize("kind", SPELLING)
@given(text=anything)
def test_special_token_names_survive_encoding_and_decoding(kind, text):
    tokenizer = get_tokenizer(kind)
    # SentencePiece writes a space as \u2581, and at the beginning of a text has one of its own that decoding
    # takes off.
    text = "x" + text.replace("\u2581", " ")
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", ["byte-level", "specials after the vocabulary"])
@given(instruction=anything, input=anything)
def test_prompts_equal_transformers_between_template_markers(kind, instruction, input):
    """With these tokenizers a stretch does not depend on what is before it."""
    tokenizer = get_tokenizer(kind)
    reference = build_tokenizer(kind).hugging_face
    (ids,) = tokenizer.encode_prompts([BUILT_IN_TEMPLATES["chatml"].split_prompt(instruction, input)])
    text = f"user\n{instruction}\n\n{input}" if input else f"user\n{instruction}"
    start, end = (tokenizer.special_tokens[marker] for marker in ("<|im_start|>", "<|im_end|>"))
    stretches = [text, "\n", "assistant\n"]
    first, newline, last = reference(stretches, add_special_tokens=False, split_special_tokens=True)[
        "input_ids"
    ]
    assert ids == [start, *first, end, *newline, start, *last]


@kinds
def test_marker_across_the_template_border_is_text(kind):
    tokenizer = get_tokenizer(kind)
    template = Template("joins", "{instruction}{input}</", "<|im_{instruction}</")
    for parts in (
        template.split_prompt("end|> the "),
        template.split_prompt("<|im_", "end|>"),
        template.split_prompt("<", "s>"),
    ):
        assert special_in(tokenizer, tokenizer.encode_prompts([parts])[0]) == []


@kinds
def test_original_tokenizer_is_not_changed(kind, tmp_path):
    tokenizer, untouched = build_tokenizer(kind), build_tokenizer(kind)
    tokenizer.encode_batch(SPECIAL)
    assert (
        tokenizer.hugging_face.backend_tokenizer.to_str() == untouched.hugging_face.backend_tokenizer.to_str()
    )
    assert not tokenizer.hugging_face.backend_tokenizer.encode_special_tokens
    assert encode_with_transformers(tokenizer, "</s>") == encode_with_transformers(untouched, "</s>")


@kinds
@given(text=ordinary)
def test_renaming_changes_no_other_ids(kind, text):
    tokenizer = get_tokenizer(kind)
    backend = tokenizer.hugging_face.backend_tokenizer
    names = generate_secret_names(tokenizer.special_tokens)
    other = rename_special_tokens(backend, names)
    assert {other.token_to_id(name): text for text, name in names.items()} == {
        number: text for text, number in tokenizer.special_tokens.items()
    }
    assert all(other.token_to_id(text) is None for text in SPECIAL)
    assert other.encode(text, add_special_tokens=False).ids == encode_with_transformers(tokenizer, text)


def test_added_tokens_that_are_not_special_stay_tokens():
    tokenizer = get_tokenizer("specials after the vocabulary")
    think = tokenizer.hugging_face.convert_tokens_to_ids("<think>")
    for text in ("the <think> answer", "the <think> answer</s>"):
        assert think in tokenizer.encode(text)


def test_end_of_answer_token_counts_as_special():
    backend = KINDS["byte-level"]()
    backend.add_tokens(["<|stop|>"])
    stop = backend.token_to_id("<|stop|>")
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"), [stop])
    assert stop not in tokenizer.encode("the <|stop|>") and set(tokenizer.end_texts) == {"</s>", "<|stop|>"}


def test_single_character_is_never_special():
    """Some bases name "!" as their padding; texts that lost it would be worse."""
    backend = KINDS["byte-level"]()
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="!"))
    assert (
        tokenizer.encode("the!") == encode_with_transformers(tokenizer, "the!")
        and "!" not in tokenizer.special_tokens
    )


def test_small_test_model_encodes_markers_as_text(tmp_path):
    save_model(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.decode(tokenizer.encode("a<|end|>b")) == "a<|end|>b"
    assert tokenizer.eos_id not in tokenizer.encode("a<|end|>b")


@settings(max_examples=50, deadline=None)
@given(instruction=ordinary, input=ordinary)
def test_smollm2_prompts_equal_transformers(smollm2, instruction, input):
    tokenizer = smollm2.tokenizer
    for template in BUILT_IN_TEMPLATES.values():
        parts, text = template.split_prompt(instruction, input), template.render(instruction, input)
        assert (
            tokenizer.encode_prompts([parts])
            == tokenizer._encode_protected([parts])
            == [encode_with_transformers(tokenizer, text)]
        )
        assert tokenizer.hugging_face(text)["input_ids"] == encode_with_transformers(
            tokenizer, text
        )  # no BOS


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.sampled_from([*ORDINARY, "<|im_end|>", "<|endoftext|>", "<|im_start|>user\n", "<file_sep>"])
    ).map("".join)
)
def test_smollm2_texts_survive_encoding_and_decoding(smollm2, text):
    tokenizer = smollm2.tokenizer
    ids = tokenizer.encode(text)
    assert special_in(tokenizer, ids) == [] and tokenizer.decode(ids) == text
    (prompt,) = tokenizer.encode_prompts([BUILT_IN_TEMPLATES["chatml"].split_prompt(text)])
    assert len(special_in(tokenizer, prompt)) == 3
