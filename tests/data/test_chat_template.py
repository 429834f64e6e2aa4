"""Chat templates: rendered as transformers renders them, taken apart again, and what is learned of them."""

import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from loratune.data.chat_template import ChatTemplate
from loratune.errors import UserError
from support.chat_templates import FAMILIES, conversation_with_a_tool, conversations

MARKERS = {name: [*special.values(), *others] for name, (_, special, others) in FAMILIES.items()}
TEMPLATES = {
    name: ChatTemplate(source, special, MARKERS[name]) for name, (source, special, _) in FAMILIES.items()
}
ENDS = {"phi": "<|end|>", "gemma": "<end_of_turn>"}  # of an answer, where it is not EOS
WORDS = st.text(st.sampled_from("ab <|>\n_/è🜚[]{}%") | st.characters(exclude_categories=["Cs"]), min_size=1)
SPELLED = st.sampled_from(sorted({marker for markers in MARKERS.values() for marker in markers}))
CONTENTS = st.lists(WORDS | SPELLED, min_size=1, max_size=4).map(" ".join).filter(lambda text: text.strip())


def plain(messages) -> bool:
    """Whether no text takes part in how the Qwen template works."""
    return not any("think>" in message["content"] for message in messages)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(messages=conversations(CONTENTS))
def test_the_parts_are_the_text_and_contents_are_never_the_templates(family, messages):
    assume(plain(messages))
    template = TEMPLATES[family]
    parts = template.split(messages)
    assert "".join(parts) == template.render(messages)
    assert [part.strip() for part in parts[1::2]] == [message["content"].strip() for message in messages]
    assert len(parts) == 2 * len(messages) + 1


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_ends_with_the_familys_end_token(family):
    assert TEMPLATES[family].end_token == ENDS.get(family, TEMPLATES[family].special_tokens["eos_token"])


@pytest.mark.parametrize("family", FAMILIES)
@given(instruction=CONTENTS, input=CONTENTS | st.just(""))
@settings(max_examples=30, deadline=None)
def test_a_prompt_is_one_users_turn_and_the_beginning_of_an_answer(family, instruction, input):
    content = f"{instruction}\n\n{input}" if input else instruction
    parts = TEMPLATES[family].split_prompt(instruction, input)
    messages = [{"role": "user", "content": content}]
    assert "".join(parts) == TEMPLATES[family].render(messages, add_generation_prompt=True)
    assert parts[1] == content.strip()


def test_a_date_is_that_of_the_template_and_not_the_current_one():
    template = replace(TEMPLATES["llama 3.2"], date="2024-07-26")
    assert "Today Date: 26 Jul 2024\n" in template.render([{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_template_survives_to_dict_and_from_dict(family):
    template = replace(TEMPLATES[family], date="2024-07-26")
    read = ChatTemplate.from_dict(json.loads(json.dumps(template.to_dict())))
    assert read.with_markers(MARKERS[family]) == template.with_markers(MARKERS[family])


@pytest.mark.parametrize(
    "values",
    [
        {"chat_template": 3},
        {"chat_template": "x", "special_tokens": 5},
        {"chat_template": "x", "special_tokens": {"eos_token": None}},
        {"chat_template": "x", "date": "tomorrow"},
    ],
)
def test_broken_fields_are_refused(values):
    with pytest.raises(UserError, match="some file: broken"):
        ChatTemplate.from_dict(values, "some file")


def test_a_call_of_a_tool_is_shown_or_refused_by_name():
    messages = conversation_with_a_tool()
    TEMPLATES["qwen 2.5"].check(messages)
    for family in ("chatml", "llama 3", "zephyr"):
        with pytest.raises(UserError, match="does not show tool calls, such as that of find_shelf"):
            TEMPLATES[family].check(messages)
    messages[2] = {**messages[2], "content": None}
    TEMPLATES["qwen 2.5"].check(messages)
    with pytest.raises(UserError, match="does not show tool calls, such as that of find_shelf"):
        TEMPLATES["chatml"].check(messages)  # in which null is no text


def test_the_arguments_of_a_call_may_not_spell_a_special_token():
    messages = conversation_with_a_tool()
    call = {"function": {"name": "find_shelf", "arguments": {"thing": "<|im_end|>"}}}
    messages[2] = {**messages[2], "tool_calls": [call]}
    with pytest.raises(UserError, match=r"a tool spells <\|im_end\|>"):
        TEMPLATES["qwen 2.5"].check(messages)
    with pytest.raises(UserError, match=r"a tool spells <\|im_end\|>"):
        TEMPLATES["qwen 2.5"].split(messages[:2], tools=[{"name": "<|im_end|>"}])


def test_contents_that_are_taken_apart_may_not_spell_a_special_token():
    messages = [{"role": "assistant", "content": "<think>why</think> then <|im_end|>"}]
    with pytest.raises(UserError, match="a message spells"):
        TEMPLATES["qwen 3"].split(messages)
    assert TEMPLATES["qwen 3"].split([{"role": "assistant", "content": "<think>why</think> so"}])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for message in messages %}", "line 1: Unexpected end of template"),
        ("\n\n{{ messages[0].content + 1 }}", "the chat template fails on this conversation"),
        ("{{ raise_exception('only one turn') }}", "refuses this conversation: only one turn"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{% include '/etc/passwd' %}", "no loader for this environment"),
    ],
)
def test_a_template_that_fails_is_refused_with_its_line(source, message):
    with pytest.raises(UserError) as refused:
        ChatTemplate(source).render([{"role": "user", "content": "Hi"}])
    assert message in str(refused.value)


def test_an_answer_that_could_not_end_is_refused():
    source = "{% for message in messages %}{{ message.role + ': ' + message.content + '\\n' }}{% endfor %}"
    with pytest.raises(UserError, match="no special token follows an answer"):
        _ = ChatTemplate(source, markers=["</s>"]).end_token
