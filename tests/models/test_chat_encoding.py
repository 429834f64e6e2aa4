"""Conversations as ids: those of transformers, with the learned tokens; no text becomes a special token."""

from functools import cache

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from loratune.data.chat_template import ChatTemplate
from loratune.data.learned_spans import render_learned
from loratune.data.resolve_template import find_own_template, fit_tokenizer
from loratune.models.chat_encoding import split_parts
from loratune.models.tokenizer import Tokenizer
from support.chat_templates import FAMILIES, conversations
from support.small_tokenizers import byte_level, sentence_piece

BACKENDS = {"byte-level": byte_level, "SentencePiece": sentence_piece}
PLAIN = st.text(st.sampled_from("ab .,\nè🜚_") | st.characters(exclude_categories=["Cs"]), min_size=1)


@cache
def tokenizer_of(family: str, backend: str) -> Tokenizer:
    source, special, others = FAMILIES[family]
    whole = PreTrainedTokenizerFast(
        tokenizer_object=BACKENDS[backend](), additional_special_tokens=others, unk_token="<unk>", **special
    )
    whole.chat_template = source
    return Tokenizer(whole)


def template_of(family: str) -> ChatTemplate:
    source, special, others = FAMILIES[family]
    return ChatTemplate(source, special, [*special.values(), *others])


def contents(family: str):
    """Texts without the names of special tokens, which transformers would take for the tokens."""
    markers = tokenizer_of(family, "byte-level").special_tokens
    return PLAIN.filter(lambda text: text.strip() and not any(marker in text for marker in markers))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_ids_are_those_of_transformers(family, backend, data):
    messages = data.draw(conversations(contents(family)))
    tokenizer, template = tokenizer_of(family, backend), template_of(family)
    theirs = tokenizer.hugging_face.apply_chat_template(messages, tokenize=True, return_dict=False)
    ((ids, _),) = tokenizer.encode_spans([(template.split(messages), [])])
    assert ids == theirs


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_prompts_are_those_of_transformers(family, backend, data):
    messages = data.draw(conversations(contents(family)))[:-1]
    template = template_of(family)
    tokenizer = fit_tokenizer(tokenizer_of(family, backend), template)
    theirs = tokenizer.hugging_face.apply_chat_template(
        messages, tokenize=True, return_dict=False, add_generation_prompt=True
    )
    assert tokenizer.encode_prompts([template.split_conversation(messages)]) == [theirs]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_learned_tokens_follow_the_prompt_that_the_model_is_given(family, backend, data):
    messages = data.draw(conversations(contents(family)))
    tokenizer, template = tokenizer_of(family, backend), template_of(family)
    answers = [number for number, one in enumerate(messages) if one["role"] == "assistant"]
    for chat in render_learned(template, messages, answers):
        ((ids, spans),) = tokenizer.encode_spans([(chat.parts, chat.learned)])
        for (first, last), (start, stop) in zip(spans, chat.learned, strict=True):
            head, _ = split_parts(chat.parts, start)
            assert ids[:first][-3:] == tokenizer.encode_spans([(head, [])])[0][0][-3:]
            text = tokenizer.hugging_face.decode(ids[first:last], clean_up_tokenization_spaces=False)
            assert "".join(text.split()) == "".join("".join(chat.parts)[start:stop].split())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_text_that_spells_a_special_token_stays_text(family, backend, data):
    tokenizer, template = tokenizer_of(family, backend), template_of(family)
    spelled = st.lists(PLAIN | st.sampled_from(sorted(tokenizer.special_tokens)), min_size=1, max_size=3)
    messages = data.draw(conversations(spelled.map("".join).filter(lambda text: text.strip())))
    assume(not any("think>" in message["content"] for message in messages))
    harmless = [{**message, "content": "x"} for message in messages]
    ((ids, _),) = tokenizer.encode_spans([(template.split(messages), [])])
    special = set(tokenizer.special_tokens.values())
    ((expected, _),) = tokenizer.encode_spans([(template.split(harmless), [])])
    assert [one for one in ids if one in special] == [one for one in expected if one in special]


def test_a_token_over_the_border_is_cut():
    """ "b" is learned, and the tokenizer has the token "ab": the model would have been given "a" alone."""
    tokenizer = tokenizer_of("chatml", "byte-level")
    merged = next(text for text in ("is", "th", "he", "an", "er") if len(tokenizer.encode(text)) == 1)
    ((ids, spans),) = tokenizer.encode_spans([(["", merged], [(1, 2)])])
    assert ids == tokenizer.encode(merged[0]) + tokenizer.encode(merged[1]) and spans == [(1, 2)]


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_real_template_of_smollm2_gives_the_ids_of_transformers(smollm2, data):
    tokenizer, template = smollm2.tokenizer, find_own_template(smollm2.tokenizer)
    plain = PLAIN.filter(
        lambda text: text.strip() and not any(one in text for one in tokenizer.special_tokens)
    )
    messages = data.draw(conversations(plain))
    theirs = tokenizer.hugging_face.apply_chat_template(messages, return_dict=False)
    answers = [number for number, one in enumerate(messages) if one["role"] == "assistant"]
    (chat,) = render_learned(template, messages, answers)
    ((ids, spans),) = tokenizer.encode_spans([(chat.parts, chat.learned)])
    assert ids == theirs
    for (start, stop), number in zip(spans, answers, strict=True):
        given = messages[:number]
        prompt = tokenizer.hugging_face.apply_chat_template(
            given, return_dict=False, add_generation_prompt=True
        )
        assert ids[:start] == prompt and ids[stop - 1] == tokenizer.special_tokens["<|im_end|>"]
        learned = tokenizer.hugging_face.decode(ids[start : stop - 1], clean_up_tokenization_spaces=False)
        content = messages[number]["content"]
        if tokenizer.decode(tokenizer.encode(content)) == content:  # a few bytes are not in this vocabulary
            assert learned == content
