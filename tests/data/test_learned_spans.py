"""What a conversation teaches: exactly the answers, each with the token that ends it."""

import re

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from loratune.data.chat_template import ChatTemplate
from loratune.data.learned_spans import render_learned
from loratune.errors import UserError
from support.chat_templates import FAMILIES, conversation_with_a_tool, conversations

MARKERS = {name: [*special.values(), *others] for name, (_, special, others) in FAMILIES.items()}
TEMPLATES = {
    name: ChatTemplate(source, special, MARKERS[name]) for name, (source, special, _) in FAMILIES.items()
}
WORDS = st.text(st.sampled_from("ab <|>\n_/è🜚[]{}%") | st.characters(exclude_categories=["Cs"]), min_size=1)
SPELLED = st.sampled_from(sorted({marker for markers in MARKERS.values() for marker in markers}))
CONTENTS = st.lists(WORDS | SPELLED, min_size=1, max_size=4).map(" ".join).filter(lambda text: text.strip())


def list_answers(messages) -> list[int]:
    return [number for number, one in enumerate(messages) if one["role"] == "assistant"]


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(messages=conversations(CONTENTS), data=st.data())
def test_what_is_learned_is_the_answer_and_its_end(family, messages, data):
    assume(not any("think>" in message["content"] for message in messages))
    template = TEMPLATES[family]
    learned = sorted(data.draw(st.sets(st.sampled_from(list_answers(messages)), min_size=1)))
    chats = render_learned(template, messages, learned)
    spans = [
        (chat.messages[number]["content"], "".join(chat.parts), start, stop)
        for chat in chats
        for number, (start, stop) in zip(chat.answers, chat.learned, strict=True)
    ]
    assert [content for content, *_ in spans] == [messages[number]["content"] for number in learned]
    for content, text, start, stop in spans:
        pattern = (
            rf"(<think>\n\n</think>\n\n)?\s*{re.escape(content.strip())}\s*{re.escape(template.end_token)}"
        )
        assert re.fullmatch(pattern, text[start:stop])
        # What stands before it is what the model is given when it is to answer.
        assert text[:start] in [
            template.render(messages[:number], add_generation_prompt=True)
            for number in list_answers(messages)
        ]


@settings(max_examples=30, deadline=None)
@given(messages=conversations(st.sampled_from(["one", "two <think>why</think> three", "four"])))
def test_a_template_that_leaves_out_earlier_reasoning_gives_each_answer_a_text(messages):
    template, answers = TEMPLATES["qwen 3"], list_answers(messages)
    chats = render_learned(template, messages, answers)
    assert len(chats) == len(answers)
    for number, chat in zip(answers, chats, strict=True):
        text, ((start, stop),) = "".join(chat.parts), chat.learned
        assert text == template.render(messages[: number + 1])
        assert text[start:].startswith("<think>\n") and text[start:stop].endswith("<|im_end|>")


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"qwen 3"}))
@settings(max_examples=10, deadline=None)
@given(messages=conversations(st.sampled_from(["one", "two", "three"])))
def test_a_template_that_writes_beginnings_alike_gives_one_text(family, messages):
    assert len(render_learned(TEMPLATES[family], messages, list_answers(messages))) == 1


def test_a_call_is_learned_with_its_end():
    template, messages = TEMPLATES["qwen 2.5"], conversation_with_a_tool()
    tools = [{"type": "function", "function": {"name": "find_shelf"}}]
    (chat,) = render_learned(template, messages, [2, 4, 6], tools=tools)
    text = "".join(chat.parts)
    assert '"name": "find_shelf"' in text[: text.index("</tools>")]
    call, *answers = (text[start:stop] for start, stop in chat.learned)
    assert call.startswith("Let me look.\n<tool_call>\n") and call.endswith("</tool_call><|im_end|>")
    assert answers == ["It is on shelf 4.<|im_end|>", "Twelve francs.<|im_end|>"]


def test_a_generation_block_without_the_end_is_extended_by_it():
    source = FAMILIES["generation"][0].replace(
        "{{ message.content + '<|im_end|>' }}{% endgeneration %}",
        "{{ message.content }}{% endgeneration %}{{ '<|im_end|>' }}",
    )
    template = ChatTemplate(source, {"eos_token": "<|im_end|>"}, ["<|im_start|>", "<|im_end|>"])
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    (chat,) = render_learned(template, messages, [1])
    ((start, stop),) = chat.learned
    assert "".join(chat.parts)[start:stop] == "Hello<|im_end|>"


def test_an_answer_that_does_not_follow_its_beginning_is_refused():
    source = (
        "{% for message in messages %}{{ message.role + ': ' + message.content + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'answer: ' }}{% endif %}"
    )
    template = ChatTemplate(source, markers=["</s>"])
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    with pytest.raises(UserError, match="cannot be told from the prompt"):
        render_learned(template, messages, [1])
