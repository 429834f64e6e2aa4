"""Chats: every message is kept in its order, and every answer is learned or counted."""

import json
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratune.data.conversation import list_learned, list_messages
from loratune.data.example import Record
from loratune.data.sources.chats import (
    AFTER_LAST_ANSWER,
    IN_PROMPT,
    LEARNED,
    OTHER_SYSTEM,
    REASONING,
    WEIGHT_0,
    ChatColumns,
    convert_chat,
    find_chat_columns,
)
from loratune.data.sources.readers import FileRow

CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"thing": "kettle"}'}}
READ_CALL = {**CALL, "function": {"name": "look", "arguments": {"thing": "kettle"}}}
COLUMNS = ChatColumns("", "messages")

texts = st.text("ab :\n", min_size=1, max_size=8).filter(str.strip) | st.sampled_from(
    ["User: no", "\nAssistant: no", " x "]
)
weights = st.sampled_from([None, 0, 1, 0.5])
# Messages that are mostly in a possible order, so that many chats are usable.
turns = st.lists(
    st.one_of(
        st.tuples(texts, texts, weights).map(
            lambda turn: [("user", turn[0], None, False), ("assistant", *turn[1:], False)]
        ),
        st.tuples(texts, texts, texts, weights).map(
            lambda turn: [
                ("user", turn[0], None, False),
                ("assistant", turn[1], turn[3], True),
                ("tool", turn[2], None, False),
                ("assistant", turn[2], None, False),
            ]
        ),
        st.tuples(
            st.sampled_from(["system", "user", "assistant", "tool"]), texts, weights, st.booleans()
        ).map(lambda message: [message]),
    ),
    min_size=1,
    max_size=4,
).map(lambda groups: [message for group in groups for message in group])


def build_message(role, text, weight, has_call) -> dict:
    message = {"role": role, "content": text}
    if role == "assistant" and weight is not None:
        message["weight"] = weight
    return message | ({"tool_calls": [CALL]} if role == "assistant" and has_call else {})


def is_usable(messages: list[dict]) -> bool:
    """Whether the roles are in an order that a conversation can have."""
    roles = [message["role"] for message in messages]
    spoken = messages[1:] if roles[0] == "system" else messages
    after = {
        ("user", "assistant"),
        ("assistant", "user"),
        ("assistant", "tool"),
        ("tool", "assistant"),
        ("tool", "tool"),
    }
    pairs = pairwise(spoken)
    return (
        "assistant" in roles
        and spoken[0]["role"] == "user"
        and all((one["role"], other["role"]) in after for one, other in pairs)
    )


@given(spec=turns)
def test_every_message_is_kept_and_every_answer_is_learned_or_counted(spec):
    messages = [build_message(*message) for message in spec]
    counts: Counter[str] = Counter()
    try:
        record = convert_chat({"messages": messages}, COLUMNS, "mine", counts=counts)
    except ValueError as error:
        assert str(error).startswith("messages: ") and not is_usable(messages)
        return
    assert is_usable(messages)
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    learned = [number for number in answers if messages[number].get("weight", 1)]
    assert counts[LEARNED] == len(learned) and counts[WEIGHT_0] == len(answers) - len(learned)
    if record is None:
        assert not learned
        return
    kept = list_messages(record)
    assert [(one["role"], one["content"]) for one in kept] == [
        (one["role"], one["content"]) for one in messages[: learned[-1] + 1]
    ]
    assert counts[AFTER_LAST_ANSWER] == len(messages) - len(kept)
    assert list_learned(kept) == learned
    assert all(one.keys() & {"weight"} == set() for number, one in enumerate(kept) if number in learned)
    assert [one.get("tool_calls", []) for one in kept] == [
        [READ_CALL] if "tool_calls" in one else [] for one in messages[: len(kept)]
    ]
    assert not record.messages or record.messages == kept


def said(*turns: tuple[str, str]) -> list[dict]:
    return [{"role": role, "content": content} for role, content in turns]


def convert(row: dict, columns: ChatColumns = COLUMNS) -> tuple[Record, Counter[str]]:
    counts: Counter[str] = Counter()
    record = convert_chat(row, columns, "mine", counts=counts)
    assert record is not None
    return record, +counts


ONE_TURN = said(("user", "Hi"), ("assistant", "Hello"))
WEATHER = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def test_chat_of_one_turn_is_an_ordinary_row():
    record, counts = convert({"messages": ONE_TURN})
    assert (record.instruction, record.input, record.output, record.messages) == ("Hi", "", "Hello", ())
    assert counts == {LEARNED: 1}


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"messages": [*said(("system", "Be brief.")), *ONE_TURN]}, COLUMNS),
        ({"messages": ONE_TURN, "s": "Be brief."}, ChatColumns("", "messages", system="s")),
        ({"messages": ONE_TURN, "tools": [WEATHER]}, ChatColumns("", "messages", tools="tools")),
        ({"messages": [ONE_TURN[0], {**ONE_TURN[1], "tool_calls": [CALL]}]}, COLUMNS),
    ],
    ids=["system message", "system column", "tools", "call"],
)
def test_one_turn_that_a_row_cannot_hold_is_a_conversation(row, columns):
    record, _ = convert(row, columns)
    assert record.messages


def test_a_chats_own_system_message_is_kept_and_another_one_counted():
    columns = ChatColumns("", "messages", system="system")
    own = [*said(("system", "Be brief.")), *ONE_TURN]
    record, counts = convert({"messages": own, "system": "Be long."}, columns)
    assert record.messages == own and counts == {LEARNED: 1, OTHER_SYSTEM: 1}
    record, counts = convert({"messages": own, "system": "Be brief."}, columns)
    assert record.messages == own and counts == {LEARNED: 1}
    record, _ = convert({"messages": ONE_TURN, "system": "Be brief."}, columns)
    assert record.messages == own


def test_answers_in_a_prompt_are_context():
    columns = ChatColumns("prompt", "completion")
    prompt = [*ONE_TURN, *said(("user", "And?"))]
    record, counts = convert({"prompt": prompt, "completion": said(("assistant", "So."))}, columns)
    assert [message.get("weight") for message in record.messages] == [None, 0, None, None]
    assert counts == {LEARNED: 1, IN_PROMPT: 1}


# One conversation with a call, as each form has it.
LOOKED_UP = [
    {"role": "user", "content": "Where is it?"},
    {"role": "assistant", "content": "", "tool_calls": [{k: v for k, v in READ_CALL.items() if k != "id"}]},
    {"role": "tool", "content": '{"shelf": 3}'},
    {"role": "assistant", "content": "On shelf 3."},
]
ARGUMENTS = {"thing": "kettle"}
CALL_TEXT = json.dumps({"name": "look", "arguments": ARGUMENTS})


def build_tool_chat(call: dict, role: str) -> list[dict]:
    return [LOOKED_UP[0], call, {"role": role, "content": LOOKED_UP[2]["content"]}, LOOKED_UP[3]]


def build_sharegpt(call_role: str, role: str, call: str) -> list[dict]:
    turns = [("human", "Where is it?"), (call_role, call), (role, '{"shelf": 3}'), ("gpt", "On shelf 3.")]
    return [{"from": role, "value": value} for role, value in turns]


TOOL_FORMS = {
    "OpenAI": build_tool_chat(
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"type": "function", "function": {"name": "look", "arguments": json.dumps(ARGUMENTS)}}
            ],
        },
        "tool",
    ),
    "arguments as an object, no wrapper": build_tool_chat(
        {"role": "assistant", "content": "", "tool_calls": [{"name": "look", "arguments": ARGUMENTS}]},
        "ipython",
    ),
    "OpenAI, function_call": build_tool_chat(
        {
            "role": "assistant",
            "content": None,
            "function_call": {"name": "look", "arguments": json.dumps(ARGUMENTS)},
        },
        "function",
    ),
    "ShareGPT": build_sharegpt("function_call", "observation", CALL_TEXT),
    "a list of calls": build_sharegpt("function_call", "observation", f"[{CALL_TEXT}]"),
    "tool_call": build_sharegpt("tool_call", "tool_response", CALL_TEXT),
}


@pytest.mark.parametrize("form", TOOL_FORMS)
def test_calls_in_every_form_give_the_same_conversation(form):
    record, counts = convert({"messages": TOOL_FORMS[form]})
    assert record.messages == LOOKED_UP and counts == {LEARNED: 2}


def test_text_beside_a_call_and_its_id_are_kept():
    chat = [
        *said(("user", "Where is it?")),
        {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL], "weight": 1},
        {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "look"},
        *said(("assistant", "On shelf 3.")),
    ]
    record, _ = convert({"messages": chat})
    assert record.messages[1] == {"role": "assistant", "content": "Let me look.", "tool_calls": [READ_CALL]}
    assert record.messages[2] == chat[2]


@pytest.mark.parametrize("wrap", [list, json.dumps], ids=["list", "JSON text"])
def test_reasoning_that_is_not_learned_is_counted(wrap):
    answers = [ONE_TURN[1] | {"reasoning_content": "They greet me."}, ONE_TURN[1] | {"reasoning_content": ""}]
    _, counts = convert({"messages": wrap([ONE_TURN[0], answers[0], ONE_TURN[0], answers[1]])})
    assert counts == {LEARNED: 2, REASONING: 1}


def test_a_call_may_be_written_into_the_text():
    """As in Hermes' data, whose templates show such a text as it is."""
    call = '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
    chat = said(("user", "Where?"), ("assistant", call), ("tool", "3"), ("assistant", "On shelf 3."))
    record, _ = convert({"messages": chat})
    assert record.messages == chat


@pytest.mark.parametrize("arguments", ["kettle", "[1]", '{"a": 1', '{"a": 1, "a": 2}'])
def test_arguments_that_are_no_object_stay_as_they_are(arguments):
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "look", "arguments": arguments}]}
    record, _ = convert({"messages": [*said(("user", "Where?")), call]})
    assert record.messages[1]["tool_calls"][0]["function"]["arguments"] == arguments


@pytest.mark.parametrize("wrap", [list, json.dumps], ids=["list", "JSON text"])
@pytest.mark.parametrize("tool", [WEATHER, WEATHER["function"]], ids=["OpenAI", "LLaMA-Factory"])
def test_definitions_of_tools_are_kept(wrap, tool):
    columns = ChatColumns("", "messages", tools="tools")
    record, _ = convert({"messages": ONE_TURN, "tools": wrap([tool])}, columns)
    assert record.tools == [WEATHER]


@pytest.mark.parametrize("tools", ["look", "[{", {"name": "look"}, ["look"]])
def test_tools_that_are_no_definitions_are_refused(tools):
    with pytest.raises(ValueError, match=r"^tools (must be a list of objects|is not valid JSON)"):
        convert({"messages": ONE_TURN, "tools": tools}, ChatColumns("", "messages", tools="tools"))


def build_rows(*values: dict) -> list[FileRow]:
    return [FileRow(f"row {number}", value) for number, value in enumerate(values)]


def test_requested_columns_take_precedence_over_a_chat():
    found = build_rows({"messages": ONE_TURN, "question": "a", "answer": "b"})
    names = list(found[0].values)
    assert find_chat_columns(found, names, {"instruction": "question", "output": "answer"}) is None
    assert find_chat_columns(found, names, {"text": "answer"}) is None
    assert find_chat_columns(found, names, {}) == COLUMNS


def test_text_that_starts_like_a_list_is_not_a_chat():
    """A column named chat, or a prompt that begins with a bracket, is a text like any other."""
    found = build_rows({"prompt": "[1, 2] sorted?", "completion": "[1, 2]", "chat": "[sic]"})
    assert find_chat_columns(found, list(found[0].values), {}) is None
