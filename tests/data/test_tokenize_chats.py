"""Conversations as tokens: every answer is learned or counted, and one pass equals each answer alone."""

from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, PreTrainedTokenizerFast

from loratune.data.conversation import build_conversation_record, drop_oldest_turns, list_turn_starts
from loratune.data.example import Record, build_text_record
from loratune.data.packing import pack
from loratune.data.resolve_template import find_own_template, fit_tokenizer
from loratune.data.template import load_template
from loratune.data.tokenize import tokenize_records
from loratune.errors import UserError
from loratune.models.lora import adapter_parameters, add_lora
from loratune.models.tokenizer import Tokenizer
from loratune.training.objective import target_nll
from support.chat_templates import FAMILIES, conversation_with_a_tool, conversations
from support.small_models import build_reference, convert_to_decoder, randomise_lora
from support.small_tokenizers import byte_level

TEXTS = st.text("abc .,\n", min_size=1, max_size=30).filter(str.strip)
LONG = 10_000


@cache
def get_format(family: str):
    """The template of a family and a small tokenizer for it."""
    source, special, others = FAMILIES[family]
    whole = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), additional_special_tokens=others, unk_token="<unk>", **special
    )
    whole.chat_template = source
    template = find_own_template(Tokenizer(whole))
    return template, fit_tokenizer(Tokenizer(whole), template)


def build_record(messages, **fields) -> Record:
    return build_conversation_record(messages, source="mine", record_id="1", **fields)


def tokenize(record: Record, family: str, max_tokens: int = LONG, learn: str = "all"):
    template, tokenizer = get_format(family)
    examples, counts = tokenize_records([record], template, tokenizer, max_tokens=max_tokens, learn=learn)
    return examples, counts["mine"]


def is_conversation(record: Record) -> bool:
    """Whether it is one: a question and its answer are an ordinary record."""
    return bool(record.messages)


def list_answers(messages) -> list[int]:
    return [number for number, one in enumerate(messages) if one["role"] == "assistant"]


def decode_learned(example, tokenizer) -> list[str]:
    """The texts of the learned spans, without special tokens."""
    edges = [0, *(edge for span in example.context for edge in span), len(example.response)]
    spans = zip(edges[::2], edges[1::2], strict=True)
    return [tokenizer.decode(example.response[start:stop]).strip() for start, stop in spans]


@pytest.mark.parametrize("family", ["chatml", "generation", "gemma", "mistral"])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(messages=conversations(TEXTS), data=st.data())
def test_answers_with_a_weight_are_learned_each_with_its_end_and_nothing_else(family, messages, data):
    weights = data.draw(st.lists(st.sampled_from([0, 1]), min_size=len(messages), max_size=len(messages)))
    weights[-1] = 1
    weighted = [
        {**one, "weight": weight} if one["role"] == "assistant" else one
        for one, weight in zip(messages, weights, strict=True)
    ]
    _, tokenizer = get_format(family)
    record = build_record(weighted)
    for learn in ("all", "last"):
        (example,), counts = tokenize(record, family, learn=learn)
        learned = [messages[number] for number in list_answers(messages) if weights[number]]
        learned = learned[-1:] if learn == "last" else learned
        assert decode_learned(example, tokenizer) == [one["content"].strip() for one in learned]
        assert example.learned.count(tokenizer.eos_id) == len(learned) == example.answers
        answers = len(learned) * is_conversation(record)
        assert (counts["answers"], counts["answers_cut"], counts["rows"]) == (answers, 0, 1)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(messages=conversations(TEXTS))
def test_a_template_that_rewrites_earlier_turns_makes_an_example_of_each_answer(messages):
    record = build_record(messages)
    examples, counts = tokenize(record, "qwen 3")
    answers = list_answers(messages)
    assert len(examples) == len(answers)
    assert counts["answers"] == len(answers) * is_conversation(record)
    assert counts["rows_split"] == int(len(answers) > 1)


@pytest.mark.parametrize("family", ["chatml", "llama 3.2", "phi"])
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(messages=conversations(TEXTS))
def test_one_pass_has_the_losses_and_gradients_of_each_answer_alone(family, messages):
    (whole,), _ = tokenize(build_record(messages), family)
    alone = []
    for number in list_answers(messages):
        beginning = build_record(messages[: number + 1])
        alone += tokenize(beginning, family, learn="last")[0]
    config = GPT2Config(
        vocab_size=get_format(family)[1].size, n_embd=16, n_head=2, n_layer=2, n_positions=1024
    )
    decoder = convert_to_decoder(build_reference(config))
    add_lora(decoder, rank=2, alpha=4, dropout=0.0, targets=["all"], seed=0)
    randomise_lora(decoder)
    losses, gradients = [], []
    for batch in (pack([whole]), pack(alone)):
        loss = target_nll(decoder, batch)
        gradients.append(torch.autograd.grad(loss.sum(), list(adapter_parameters(decoder).values())))
        losses.append(loss.detach())
    assert losses[0].shape == losses[1].shape
    assert torch.allclose(losses[0], losses[1], rtol=1e-5, atol=1e-5)
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(messages=conversations(TEXTS), max_tokens=st.integers(30, 150))
def test_the_oldest_turns_go_first_and_the_system_message_stays(messages, max_tokens):
    record = build_record(messages)
    (whole,), _ = tokenize(record, "chatml")
    examples, counts = tokenize(record, "chatml", max_tokens)
    size = len(whole.prompt) + len(whole.response)
    if size <= max_tokens:
        assert examples == [whole] and counts["turns_cut"] == counts["inputs_cut"] == 0
        return
    turns = len(list_turn_starts(messages))
    fitting = [
        shorter
        for count in range(1, turns)
        for shorter in tokenize(build_record(drop_oldest_turns(messages, count)), "chatml")[0]
        if len(shorter.prompt) + len(shorter.response) <= max_tokens
    ]
    lost = counts["turns_cut"]
    if is_conversation(record):
        assert counts["answers"] + counts["answers_cut"] == len(list_answers(messages))
    if fitting:
        assert examples == fitting[:1] and lost == turns - examples[0].answers and not counts["responses_cut"]
        assert counts["answers_cut"] == lost
    elif examples:
        assert lost == turns - 1 and counts["responses_cut"] == 1
        assert len(examples[0].prompt) + len(examples[0].response) == max_tokens
    else:
        assert counts["dropped"] == 1


def test_a_call_of_a_tool_is_learned_or_refused_with_the_row():
    record = build_record(conversation_with_a_tool())
    (example,), counts = tokenize(record, "qwen 2.5")
    assert example.answers == counts["answers"] == 3
    with pytest.raises(UserError, match="row 1 of mine: the chat template does not show tool calls, such as"):
        tokenize(record, "chatml")
    with pytest.raises(
        UserError, match="row 1 of mine: the template 'instruction' has no form for tool calls"
    ):
        tokenize_records([record], load_template("instruction"), get_format("chatml")[1], max_tokens=LONG)


def test_a_text_template_makes_an_example_of_each_answer_with_the_turns_before_it():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "Ciao."},
    ]
    template, tokenizer = load_template("instruction"), get_format("chatml")[1].for_text()
    examples, counts = tokenize_records([build_record(messages)], template, tokenizer, max_tokens=LONG)
    texts = [(tokenizer.decode(one.prompt), tokenizer.decode(one.response)) for one in examples]
    assert texts == [
        (template.render("Hi", "System: Be brief."), "Hello."),
        (template.render("Bye", "System: Be brief.\nUser: Hi\nAssistant: Hello."), "Ciao."),
    ]
    assert (counts["mine"]["answers"], counts["mine"]["rows_split"]) == (2, 1)
    longest = max(len(one.prompt) + len(one.response) for one in examples)
    shorter, counts = tokenize_records([build_record(messages)], template, tokenizer, max_tokens=longest - 1)
    assert tokenizer.decode(shorter[1].prompt) == template.render("Bye", "System: Be brief.")
    assert (counts["mine"]["inputs_cut"], counts["mine"]["turns_cut"]) == (1, 1)


@settings(max_examples=40, deadline=None)
@given(text=st.text("abc .,\n", min_size=1, max_size=300).filter(str.strip), max_tokens=st.integers(8, 60))
@pytest.mark.parametrize("family", ["chatml", "llama 3"])
def test_every_token_of_a_plain_text_is_learned_once(family, text, max_tokens):
    template, tokenizer = get_format(family)
    record = build_text_record(text, source="mine")
    examples, counts = tokenize_records([record], template, tokenizer, max_tokens=max_tokens)
    ids = [*tokenizer.encode(text), tokenizer.text_eos_id]
    assert [token for example in examples for token in example.response] == ids
    assert all(len(one.prompt) + len(one.response) <= max_tokens for one in examples)
    assert [one.prompt for one in examples[1:]] == [one.response[-1:] for one in examples[:-1]]
    assert counts["mine"]["rows_split"] == int(len(examples) > 1)
