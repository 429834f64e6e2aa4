"""Chats: every turn is trained on, used as context or counted."""

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from loratune.data.sources.chats import (
    AFTER_LAST_ANSWER,
    CONTEXT_ONLY,
    WEIGHT_0,
    ChatColumns,
    convert_chat,
    find_chat_columns,
)
from loratune.data.sources.readers import FileRow
from loratune.data.truncation import TURN_STARTS

turns = st.lists(
    st.tuples(
        st.sampled_from(["system", "user", "user", "assistant", "assistant"]),
        st.text("ab :\n", min_size=1, max_size=8).filter(str.strip)
        | st.sampled_from(["User: no", "\nAssistant: no", " x "]),
        st.sampled_from([None, 0, 1, 0.5]),
    ),
    min_size=1,
    max_size=9,
)


def messages_of(turns_spec) -> list[dict]:
    return [
        {"role": role, "content": text}
        | ({} if weight is None or role != "assistant" else {"weight": weight})
        for role, text, weight in turns_spec
    ]


@given(turns_spec=turns)
def test_every_turn_is_trained_on_used_as_context_or_counted(turns_spec):
    counts: Counter[str] = Counter()
    try:
        record = convert_chat(
            {"messages": messages_of(turns_spec)}, ChatColumns("", "messages"), "mine", counts=counts
        )
    except ValueError as error:
        assert str(error).startswith("messages")
        answered = any(a[0] == "user" and b[0] == "assistant" and b[2] != 0 for a, b in pairwise(turns_spec))
        last_learned = max(
            (n for n, turn in enumerate(turns_spec) if turn[0] == "assistant" and turn[2] != 0), default=-1
        )
        assert not answered or turns_spec[last_learned - 1][0] == "assistant"
        return
    answers = [number for number, turn in enumerate(turns_spec) if turn[0] == "assistant"]
    learned = [number for number in answers if turns_spec[number][2] != 0]
    assert counts[WEIGHT_0] == len(answers) - len(learned)
    if record is None:
        assert not learned
        return
    last = learned[-1]
    assert record.output == turns_spec[last][1]
    assert counts[AFTER_LAST_ANSWER] == len(turns_spec) - 1 - last
    assert counts[CONTEXT_ONLY] == sum(number < last for number in answers)
    # The context is what was said before, without the question, each turn at its place.
    starts = record.meta.get(TURN_STARTS, [])
    context = [
        record.input[start:end].removesuffix("\n")
        for start, end in pairwise([*starts, len(record.input) + 1])
    ]
    asked = max(number for number in range(last) if turns_spec[number][0] == "user")
    before = [f"{role.capitalize()}: {text}" for role, text, _ in turns_spec[:last]]
    assert record.instruction == turns_spec[asked][1]
    assert [turn.rstrip("\n") for turn in context] == [
        text.rstrip("\n") for number, text in enumerate(before) if number != asked
    ]
    assert "\n".join(text for number, text in enumerate(before) if number != asked) == record.input


def build_rows(*values: dict) -> list[FileRow]:
    return [FileRow(f"row {number}", value) for number, value in enumerate(values)]


def test_requested_columns_take_precedence_over_a_chat():
    found = build_rows({"messages": [{"role": "user", "content": "Hi"}], "question": "a", "answer": "b"})
    assert (
        find_chat_columns(found, list(found[0].values), {"instruction": "question", "output": "answer"})
        is None
    )
    assert find_chat_columns(found, list(found[0].values), {}) == ChatColumns("", "messages")


def test_text_that_starts_like_a_list_is_not_a_chat():
    """A column named chat, or a prompt that begins with a bracket, is a text like any other."""
    found = build_rows({"prompt": "[1, 2] sorted?", "completion": "[1, 2]", "chat": "[sic]"})
    assert find_chat_columns(found, list(found[0].values), {}) is None
