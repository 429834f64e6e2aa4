"""Chat templates: rendered as transformers renders them, taken apart again, and what is learned of them."""

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from loratune.data.chat_template import ChatTemplate
from loratune.errors import UserError
from support.chat_templates import FAMILIES, conversations

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
    assert TEMPLATES[family].find_end_token() == ENDS.get(
        family, TEMPLATES[family].special_tokens["eos_token"]
    )


@pytest.mark.parametrize("family", FAMILIES)
@given(instruction=CONTENTS, input=CONTENTS | st.just(""))
@settings(max_examples=30, deadline=None)
def test_a_prompt_is_one_users_turn_and_the_beginning_of_an_answer(family, instruction, input):
    content = f"{instruction}\n\n{input}" if input else instruction
    parts = TEMPLATES[family].split_prompt(instruction, input)
    messages = [{"role": "user", "content": content}]
    assert "".join(parts) == TEMPLATES[family].render(messages, add_generation_prompt=True)
    assert parts[1] == content.strip()


def test_contents_that_are_taken_apart_may_not_spell_a_special_token():
    messages = [{"role": "assistant", "content": "<think>why</think> then <|im_end|>"}]
    with pytest.raises(UserError, match="one of them spells"):
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
        ChatTemplate(source, markers=["</s>"]).find_end_token()
