"""`loratune prepare` on files of the kinds that people bring: nothing is lost, learned or mixed without a
word.
"""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from loratune.cli.main import main
from loratune.data.conversation import list_messages
from loratune.data.example import Record
from loratune.data.jsonl import read_records, record_to_json
from loratune.data.sources.files import read_file
from support.chat_templates import QWEN_2_5
from support.small_models import save_model

THINGS = [
    f"{how} {thing}"
    for how in ("old", "new", "blue", "tiny")
    for thing in ("kettle", "marble", "boot", "ladder", "tent")
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    save_model(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tool_model(tmp_path_factory) -> str:
    """A model whose chat template shows tools and calls."""
    folder = tmp_path_factory.mktemp("tool model")
    save_model(folder)
    (folder / "chat_template.jinja").write_text(QWEN_2_5.replace("<|im_end|>", "<|end|>"))
    return str(folder)


def prepare(model: str, data: Path, *options) -> int:
    return main(
        ["prepare", "--model", model, "--out", f"{data.parent}/out", "--data", f"{data}", *map(str, options)]
    )


def prepared(model: str, data: Path, capsys, *options) -> tuple[list[Record], dict, str]:
    """All records that were written, what the report says of the source, and what the terminal said."""
    assert prepare(model, data, "--val-fraction", "0.2", "--json", *options) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report == json.loads((data.parent / "out" / "prepare_report.json").read_text())
    parts = (data.parent / "out" / f"{split}.jsonl" for split in ("train", "val", "test"))
    records = [record for path in parts if path.read_text() for record in read_records(path)]
    assert len(records) == sum(report["rows"].values())
    return records, report["sources"][data.stem], captured.err


def refused(model: str, data: Path, capsys, *options) -> str:
    assert prepare(model, data, *options) == 2
    assert not (data.parent / "out").exists()
    return capsys.readouterr().err


def write_json(path: Path, rows: list[dict]) -> Path:
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in rows) if path.suffix == ".jsonl" else json.dumps(rows)
    )
    return path


def said(*turns: tuple[str, str]) -> list[dict]:
    return [{"role": role, "content": content} for role, content in turns]


# Chats


def chat_of(thing: str) -> list[dict]:
    return said(
        ("user", f"Clean the {thing}?"),
        ("assistant", f"Wipe the {thing}."),
        ("user", f"And then, {thing}?"),
        ("assistant", f"Dry the {thing}."),
    )


def test_every_answer_of_a_chat_is_learned(model, tmp_path, capsys):
    data = write_json(tmp_path / "chats.jsonl", [{"messages": chat_of(thing)} for thing in THINGS])
    records, source, told = prepared(model, data, capsys)
    assert {json.dumps(record.messages) for record in records} == {
        json.dumps(chat_of(thing)) for thing in THINGS
    }
    (notes,) = source["files"]
    assert notes["counts"] == {"answers to learn": 40}
    assert "40 answers to learn" in told


@pytest.mark.parametrize(
    "mark",
    [
        {"weight": 0},
        {"weight": 0.0},
        {"train": False},
        {"trainable": False},
        {"loss": False},
        {"loss_mask": 0},
    ],
)
def test_an_answer_of_weight_0_is_never_learned(model, tmp_path, capsys, mark):
    chats = [chat_of(thing) for thing in THINGS]
    for chat in chats:
        chat[1]["weight"] = 1
        chat[3] |= mark
    nothing = said(("user", "One?"), ("assistant", "Bad."))
    nothing[1]["weight"] = 0
    data = write_json(tmp_path / "chats.jsonl", [{"messages": chat} for chat in [*chats, nothing]])
    records, source, told = prepared(model, data, capsys)
    assert {record.output for record in records} == {f"Wipe the {thing}." for thing in THINGS}
    assert not any(
        "Dry the" in text for record in records for text in (record.instruction, record.input, record.output)
    )
    (notes,) = source["files"]
    assert notes["counts"]["answers marked with weight 0, not learned"] == 21
    assert notes["counts"]["turns after the last learned answer, left out"] == 40
    assert source["left_out"]["chats whose answers all have weight 0"] == 1
    assert "21 answers marked with weight 0, not learned" in told


CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]}
RESULT = {"role": "tool", "content": "{}"}
QUESTION = {"role": "user", "content": "Where?"}
ANSWER = {"role": "assistant", "content": "On shelf 3."}


@pytest.mark.parametrize(
    ("chat", "problem"),
    [
        (
            [ANSWER, QUESTION, ANSWER],
            "message 1: the conversation begins with the role 'assistant'; a",
        ),
        (
            [QUESTION, QUESTION, ANSWER],
            "message 2: a message of user follows one of user; join them",
        ),
        ([QUESTION, ANSWER, ANSWER], "message 3: a message of assistant follows one of assistant; join them"),
        (
            [QUESTION, {"role": "narrator", "content": "Night."}, ANSWER],
            "message 2: role 'narrator' is unknown",
        ),
        ([{"role": "user", "content": " \n"}, ANSWER], "message 1: content is blank"),
        ([QUESTION, {"role": "assistant", "content": None}], "message 2: content is missing"),
        (
            [QUESTION, ANSWER, {"role": "system", "content": "Be brief."}, QUESTION, ANSWER],
            "message 3: a system message must be the first one; put its text there",
        ),
        (
            [QUESTION, RESULT, ANSWER],
            "message 2: a message of tool follows one of user; the",
        ),
        ([QUESTION, CALL, RESULT, QUESTION, ANSWER], "message 4: a message of user follows one of tool; the"),
        ([CALL | {"role": "user", "content": "Hi"}, ANSWER], "message 1: it has tool_calls, which only an"),
        (
            [QUESTION, CALL | {"tool_calls": [{"function": {"arguments": "{}"}}]}, RESULT, ANSWER],
            'message 2: tool_calls, number 1: a function with a name is needed; write {"name": ...',
        ),
        (
            [QUESTION, {"role": "function_call", "content": '{"name": "look", '}, RESULT, ANSWER],
            "message 2: content is not valid JSON (",
        ),
        (
            [QUESTION, {"role": "function_call", "content": '{"arguments": {}}'}, RESULT, ANSWER],
            "message 2: content, number 1: a function with a name is needed; write",
        ),
        (
            [
                QUESTION,
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
                ANSWER,
            ],
            "message 2: content, part 1: a part of the type text is needed, not image_url",
        ),
    ],
)
def test_a_chat_that_is_wrong_is_refused_with_file_line_and_message(model, tmp_path, capsys, chat, problem):
    good = [{"messages": chat_of(thing)} for thing in THINGS]
    data = write_json(tmp_path / "chats.jsonl", [good[0], {"messages": chat}, *good[1:]])
    told = refused(model, data, capsys)
    assert f"{data}, line 2: messages: {problem}" in told and "--skip-bad" in told
    records, source, _ = prepared(model, data, capsys, "--skip-bad")
    assert len(records) == 20 and source["left_out"] == {"rows that cannot be used (--skip-bad)": 1}


LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def use_tool(thing: str) -> list[dict]:
    """A conversation with a call, as chat templates take it."""
    call = {"type": "function", "function": {"name": "look", "arguments": {"thing": thing}}}
    return [
        {"role": "user", "content": f"Where is the {thing}?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": f"The {thing}: shelf 3"},
        {"role": "assistant", "content": f"The {thing} is on shelf 3."},
    ]


def write_openai_tools(chat: list[dict]) -> dict:
    call = {"name": "look", "arguments": json.dumps(chat[1]["tool_calls"][0]["function"]["arguments"])}
    asked = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]}
    return {"messages": [chat[0], asked, *chat[2:]], "tools": [LOOK]}


def write_llama_factory_tools(chat: list[dict]) -> dict:
    call = json.dumps(chat[1]["tool_calls"][0]["function"])
    roles = ("human", "function_call", "observation", "gpt")
    texts = (chat[0]["content"], call, chat[2]["content"], chat[3]["content"])
    return {
        "conversations": [{"from": role, "value": text} for role, text in zip(roles, texts, strict=True)],
        "tools": json.dumps([LOOK["function"]]),
    }


@pytest.mark.parametrize("write", [write_openai_tools, write_llama_factory_tools])
def test_calls_are_learned_and_tools_kept(tool_model, tmp_path, capsys, write):
    data = write_json(tmp_path / "chats.jsonl", [write(use_tool(thing)) for thing in THINGS])
    records, source, _ = prepared(tool_model, data, capsys)
    assert {json.dumps(record.messages) for record in records} == {
        json.dumps(use_tool(thing)) for thing in THINGS
    }
    assert all(record.tools == [LOOK] for record in records)
    (notes,) = source["files"]
    assert notes["counts"] == {"answers to learn": 40} and notes["warnings"] == notes["unused"] == []
    assert source["answers"] == 40 and source["dropped"] == 0


def test_beginnings_of_one_chat_are_in_one_split(model, tmp_path, capsys):
    """As other tools write a chat of several answers, for trainers that learn only the last one."""
    rows = [{"messages": chat_of(thing)[:end]} for thing in THINGS for end in (2, 4)]
    data = write_json(tmp_path / "chats.jsonl", rows)
    records, source, _ = prepared(model, data, capsys)
    assert len(records) == 40 and source["notes"] == []
    things: dict[str, set[str]] = {}
    for split in ("train", "val", "test"):
        written = read_records(tmp_path / "out" / f"{split}.jsonl")
        things[split] = {list_messages(record)[0]["content"] for record in written}
    assert not things["train"] & (things["val"] | things["test"]) and not things["val"] & things["test"]


def test_of_a_chat_that_is_too_long_the_oldest_turns_give_way(model, tmp_path, capsys):
    """Whole turns: the system message and the newest turns stay as they are."""
    from loratune.data.template import load_template
    from loratune.data.tokenize import tokenize_records
    from loratune.models.resolve import resolve_model
    from loratune.models.tokenizer import Tokenizer

    turns = [("system", "Be brief.")]
    for number in range(20):
        turns += [
            ("user", f"Note {number}: the kettle is on shelf {number}."),
            ("assistant", f"Noted {number}."),
        ]
    chat = said(*turns, ("user", "Which shelf?"), ("assistant", "The last."))
    data = write_json(
        tmp_path / "chats.jsonl", [{"messages": chat}] + [{"messages": chat_of(thing)} for thing in THINGS]
    )
    records, source, told = prepared(model, data, capsys, "--max-tokens", "400")
    (record,) = (record for record in records if record.output == "The last.")
    tokenizer = Tokenizer.load(resolve_model(model).folder)
    rows, _ = tokenize_records([record], load_template("instruction"), tokenizer, max_tokens=400)
    whole = [f"{role.capitalize()}: {text}" for role, text in turns]
    turns_cut = []
    for number, row in enumerate(rows):  # one for each answer, with the turns before its question
        prompt = tokenizer.decode(row.prompt)
        kept = prompt.split("### Input:\n")[1].split("\n\n### Response")[0].split("\n")
        before = whole[: 1 + 2 * number]
        assert kept == [before[0], *before[len(before) - len(kept) + 1 :]]
        assert len(row.prompt) + len(row.response) <= 400
        messages_cut = len(before) - len(kept)
        assert messages_cut % 2 == 0  # a question goes with its answer
        turns_cut.append(messages_cut // 2)
    assert len(rows) == 21 and len(rows[-1].prompt) + len(rows[-1].response) > 340
    assert source["inputs_cut"] == 1 and source["turns_cut"] == max(turns_cut) > 0
    assert f"of chats the {source['turns_cut']:,} turns that are oldest give way" in told


CHAT = said(
    ("system", "Be brief."),
    ("user", "Clean it?"),
    ("assistant", "Wipe it."),
    ("user", "Then?"),
    ("assistant", "Dry it."),
)
SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}
CHAT_FORMS = {
    "OpenAI": lambda chat: {"messages": chat},
    "parts": lambda chat: {
        "messages": [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in chat]
    },
    "two parts": lambda chat: {
        "messages": [
            turn
            | {
                "content": [
                    {"type": "text", "text": part} for part in (turn["content"][:2], turn["content"][2:])
                ]
            }
            for turn in chat
        ]
    },
    "ShareGPT": lambda chat: {
        "conversations": [{"from": SHAREGPT[turn["role"]], "value": turn["content"]} for turn in chat]
    },
    "ShareGPT with a column for the system message": lambda chat: {
        "conversations": [{"from": SHAREGPT[turn["role"]], "value": turn["content"]} for turn in chat[1:]],
        "system": chat[0]["content"],
    },
    "TRL": lambda chat: {"prompt": chat[:2], "completion": chat[2:]},
    "Alpaca with a history": lambda chat: {
        "instruction": chat[-2]["content"],
        "output": chat[-1]["content"],
        "system": chat[0]["content"],
        "history": [[chat[1]["content"], chat[2]["content"]]],
    },
    "Alpaca with a history as JSON text": lambda chat: {
        "instruction": chat[-2]["content"],
        "output": chat[-1]["content"],
        "system_prompt": chat[0]["content"],
        "history": json.dumps([[chat[1]["content"], chat[2]["content"]]]),
    },
    "JSON text": lambda chat: {"messages": json.dumps(chat)},
    "capitals": lambda chat: {"Messages": [turn | {"role": turn["role"].upper()} for turn in chat]},
}


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("form", CHAT_FORMS)
def test_chats_in_every_form_give_the_same_records(tmp_path, form, kind):
    rows = [CHAT_FORMS[form](json.loads(json.dumps(CHAT).replace("it", thing))) for thing in THINGS]
    data = tmp_path / f"chats{kind}"
    if kind == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), data)
    else:
        write_json(data, rows)
    records, _, notes = read_file(data, {}, "chats")
    assert [record.messages for record in records] == [
        json.loads(json.dumps(CHAT).replace("it", thing)) for thing in THINGS
    ]
    history = {"answers in histories, learned, too": 20}
    assert notes.counts == (history if "history" in rows[0] else {"answers to learn": 40})


def test_answers_in_trls_prompt_are_context(model, tmp_path, capsys):
    """Only the completion is to be learned, also where it ends with an answer of weight 0."""
    rows = [
        {"prompt": chat_of(thing)[:3], "completion": [chat_of(thing)[3] | {"weight": 0}]} for thing in THINGS
    ]
    good = [
        {"prompt": chat_of("red " + thing)[:3], "completion": chat_of("red " + thing)[3:]} for thing in THINGS
    ]
    good[0]["completion"] = good[0]["completion"][0]["content"]
    records, source, _ = prepared(model, write_json(tmp_path / "chats.jsonl", rows + good), capsys)
    assert {record.output for record in records} == {f"Dry the red {thing}." for thing in THINGS}
    assert all([one.get("weight") for one in record.messages] == [None, 0, None, None] for record in records)
    assert source["files"][0]["counts"]["answers in the prompt, not learned"] == 40
    assert source["left_out"]["chats whose answers all have weight 0"] == 20


# Columns


def qa(thing: str, **more) -> dict:
    return {"instruction": f"Clean the {thing}?", "input": "", "output": f"Wipe the {thing}."} | more


def test_columns_that_are_not_used_are_named_and_those_that_matter_warned_of(model, tmp_path, capsys):
    rows = [qa(thing, weight=2, rejected="Break it.", url="x", tools=[]) for thing in THINGS]
    _, source, told = prepared(model, write_json(tmp_path / "mine.json", rows), capsys)
    (notes,) = source["files"]
    assert notes["columns"] == {"instruction": "instruction", "input": "input", "output": "output"}
    assert notes["unused"] == ["weight", "rejected", "url", "tools"]
    assert "unused columns: weight, rejected, url, tools" in told
    assert [warning.split("'")[1] for warning in notes["warnings"]] == ["weight", "rejected"]
    assert "warning: " + str(tmp_path / "mine.json") + ": the column 'weight' is not used" in told


def test_an_empty_column_is_nothing_to_warn_of(model, tmp_path, capsys):
    rows = [qa(thing, weight=None, rejected="", system="", history=[]) for thing in THINGS]
    records, source, told = prepared(model, write_json(tmp_path / "mine.json", rows), capsys)
    assert source["files"][0]["warnings"] == [] and "warning: " + str(tmp_path) not in told
    assert not any(record.messages for record in records)


def test_a_history_and_a_system_prompt_make_a_conversation(model, tmp_path, capsys):
    rows = [
        qa(thing, input=f"It is {thing}.", system="Be brief.", history=[["Hi", "Hello"]]) for thing in THINGS
    ]
    data = write_json(tmp_path / "mine.json", [*rows, qa("lamp", system=" ", history=None)])
    records, source, _ = prepared(model, data, capsys)
    assert {json.dumps(record.messages) for record in records} == {
        "[]",
        *(
            json.dumps(
                said(
                    ("system", "Be brief."),
                    ("user", "Hi"),
                    ("assistant", "Hello"),
                    ("user", f"Clean the {thing}?\n\nIt is {thing}."),
                    ("assistant", f"Wipe the {thing}."),
                )
            )
            for thing in THINGS
        ),
    }
    assert source["files"][0]["counts"] == {"answers in histories, learned, too": 20}


@pytest.mark.parametrize(
    ("history", "problem"),
    [
        ("Hi", "history must be a list, not text; write it as a list of [user, assistant] pairs"),
        ({"user": "Hi"}, "history must be a list, not an object; write it as"),
        (["Hi"], "history: turn 1 is text; write it as"),
        ([["Hi", "Hello"], ["Hi"]], "history: turn 2 is a list of 1; write it as"),
        ([["Hi", " "]], "history: turn 1: the assistant's text is blank"),
        ([[["Hi"], "Hello"]], "history: turn 1: the user's text must be text, not a list"),
    ],
)
def test_a_history_that_is_wrong_is_refused_with_file_line_and_field(
    model, tmp_path, capsys, history, problem
):
    rows = [qa(thing, history=[["Hi", "Hello"]]) for thing in THINGS]
    data = write_json(tmp_path / "mine.jsonl", [rows[0], qa("lamp", history=history), *rows[1:]])
    assert f"{data}, line 2: {problem}" in refused(model, data, capsys)
    assert len(prepared(model, data, capsys, "--skip-bad")[0]) == 20


@pytest.mark.parametrize("labels", [(True, False), ("True", "False"), ("true", "false ")])
def test_bad_answers_of_ktos_form_are_left_out(model, tmp_path, capsys, labels):
    rows = [
        {
            "prompt": f"Clean the {thing}?",
            "completion": f"{word} the {thing}.",
            "label": labels[word == "Break"],
        }
        for thing in THINGS
        for word in ("Wipe", "Break")
    ]
    records, source, told = prepared(model, write_json(tmp_path / "kto.jsonl", rows), capsys)
    assert {record.output for record in records} == {f"Wipe the {thing}." for thing in THINGS}
    assert (
        source["left_out"] == {"label is false: a bad answer": 20} and "the 20 bad ones are left out" in told
    )


def test_bad_chats_of_ktos_form_are_left_out(model, tmp_path, capsys):
    rows = [{"messages": chat_of(thing), "label": n % 2 == 0} for n, thing in enumerate(THINGS)]
    data = write_json(tmp_path / "kto.jsonl", rows)
    records, source, told = prepared(model, data, capsys)
    assert {record.output for record in records} == {f"Dry the {thing}." for thing in THINGS[::2]}
    assert (
        source["left_out"] == {"label is false: a bad answer": 10} and "the 10 bad ones are left out" in told
    )


def test_a_file_of_bad_answers_alone_is_refused(model, tmp_path, capsys):
    data = write_json(tmp_path / "kto.jsonl", [qa(thing, label=False) for thing in THINGS])
    assert "the column 'label' marks all its 20 answers as bad" in refused(model, data, capsys)


def test_a_label_that_is_not_true_or_false_is_a_column_like_any_other(model, tmp_path, capsys):
    rows = [qa(thing, label=number % 2) for number, thing in enumerate(THINGS)]
    records, source, _ = prepared(model, write_json(tmp_path / "mine.jsonl", rows), capsys)
    assert len(records) == 20 and source["files"][0]["unused"] == ["label"]


def test_a_question_is_taken_before_a_prompt_that_never_changes(model, tmp_path, capsys):
    rows = [
        {
            "prompt": "Answer.",
            "question": f"Clean the {thing}?",
            "context": f"A {thing}.",
            "answer": f"Wipe the {thing}.",
        }
        for thing in THINGS
    ]
    records, _, told = prepared(model, write_json(tmp_path / "mine.jsonl", rows), capsys)
    assert {(record.instruction, record.input) for record in records} == {
        (f"Clean the {t}?", f"A {t}.") for t in THINGS
    }
    assert "the column 'prompt' is not used: it has the same text in every row" in told


def test_an_instruction_that_never_changes_and_an_input_are_both_taken(tmp_path):
    rows = [
        {"instruction": "Sort this.", "input": f"the {thing} {n}", "output": thing}
        for n, thing in enumerate(THINGS)
    ]
    records, *_ = read_file(write_json(tmp_path / "mine.jsonl", rows), {}, "mine")
    assert {record.instruction for record in records} == {"Sort this."} and len(
        {record.input for record in records}
    ) == 20


def test_two_columns_for_one_role_are_warned_of(model, tmp_path, capsys):
    rows = [qa(thing, question=f"How is the {thing}?", response="Fine.") for thing in THINGS]
    _, source, _ = prepared(model, write_json(tmp_path / "mine.jsonl", rows), capsys)
    first, second = source["files"][0]["warnings"]
    assert "'question' is not used: another column is the instruction" in first
    assert "'response' is not used: it has the same text in every row" in second


def test_one_column_in_two_roles_is_refused(model, tmp_path, capsys):
    data = write_json(tmp_path / "mine.jsonl", [qa(thing) for thing in THINGS])
    told = refused(model, data, capsys, "--columns", "instruction=input", "output=input")
    assert "--columns output=input: this column is also the instruction" in told


def test_a_column_that_the_user_named_is_not_taken_a_second_time(model, tmp_path, capsys):
    rows = [{"input": f"Clean the {thing}?", "output": f"Wipe the {thing}."} for thing in THINGS]
    data = write_json(tmp_path / "mine.jsonl", rows)
    for options in (["--columns", "instruction=input"], []):
        records, *_ = prepared(model, data, capsys, *options)
        assert all(record.input == "" and record.instruction.startswith("Clean") for record in records)


def test_capitals_and_spaces_in_names_are_no_matter(model, tmp_path, capsys):
    rows = [{"Question": f"Clean the {thing}?", "ANSWER ": f"Wipe the {thing}."} for thing in THINGS]
    data = write_json(tmp_path / "mine.jsonl", rows)
    records, source, _ = prepared(model, data, capsys)
    assert len(records) == 20 and source["files"][0]["columns"] == {
        "instruction": "Question",
        "output": "ANSWER ",
    }
    assert len(prepared(model, data, capsys, "--columns", "instruction=question")[0]) == 20


# Values


CODE = "    y = x + 1\n\tif y:\r\n        return y\n\n"


def test_texts_stay_to_the_byte(model, tmp_path, capsys):
    """An answer may be code, of which the leading spaces and the last line end are a part."""
    rows = [
        {"prompt": f"def {thing}:\n    # why\n", "input": f"  {thing}\n", "completion": CODE + thing}
        for thing in THINGS
    ]
    records, *_ = prepared(model, write_json(tmp_path / "code.jsonl", rows), capsys)
    assert {record.output for record in records} == {CODE + thing for thing in THINGS}
    assert {record.input for record in records} == {f"  {thing}\n" for thing in THINGS}
    assert {record.instruction for record in records} == {f"def {thing}:\n    # why\n" for thing in THINGS}


def test_texts_of_chats_stay_to_the_byte(model, tmp_path, capsys):
    rows = [{"messages": said(("user", f" {thing}\n"), ("assistant", CODE + thing))} for thing in THINGS]
    records, *_ = prepared(model, write_json(tmp_path / "code.jsonl", rows), capsys)
    assert {(record.instruction, record.output) for record in records} == {
        (f" {t}\n", CODE + t) for t in THINGS
    }


def test_numbers_and_truth_values_are_answers(model, tmp_path, capsys):
    values = [3, -2.5, True, False, 10**20]
    rows = [{"question": f"Which is the {thing}?", "answer": values[n % 5]} for n, thing in enumerate(THINGS)]
    records, *_ = prepared(model, write_json(tmp_path / "mine.jsonl", rows), capsys)
    assert {record.output for record in records} == {"3", "-2.5", "true", "false", str(10**20)}


def test_nan_and_texts_that_say_nothing_are_no_input(model, tmp_path, capsys):
    nothing = [float("nan"), None, " \n", "<noinput>", "N/A", "nan", "None"]
    rows = [qa(thing, input=nothing[number % 7]) for number, thing in enumerate(THINGS)]
    records, source, told = prepared(model, write_json(tmp_path / "mine.json", rows), capsys)
    assert {record.input for record in records} == {""}
    assert source["files"][0]["counts"] == {
        "inputs that only say that there is none (such as N/A), taken as none": 11
    }
    assert "11 inputs that only say that there is none" in told


def test_an_output_that_says_nothing_is_warned_of(model, tmp_path, capsys):
    rows = [qa(thing) for thing in THINGS[1:]] + [qa("lamp", output="nan")]
    _, _, told = prepared(model, write_json(tmp_path / "mine.json", rows), capsys)
    assert "1 outputs that only say that there is none (such as N/A), learned as they are" in told


# Bad rows


def test_bad_rows_are_refused_or_by_wish_left_out_counted_and_listed(model, tmp_path, capsys):
    data = tmp_path / "mine.jsonl"
    lines = [json.dumps(qa(thing)) for thing in THINGS]
    bad = {
        3: "{oops",
        5: "[1]",
        7: json.dumps(qa("boat", output="  ")),
        9: json.dumps(qa("car", output=["a"])),
    }
    for number, line in bad.items():
        lines.insert(number - 1, line)
    data.write_text("\n".join(lines))
    told = refused(model, data, capsys)
    assert all(f"{data}, line {number}: " in told for number in bad)
    assert told.splitlines()[-1].startswith(
        f"error: {data}: correct these rows, or leave them out with --skip-bad"
    )
    records, source, told = prepared(model, data, capsys, "--skip-bad")
    assert len(records) == 20 and source["read"] == 24
    assert source["left_out"] == {"rows that cannot be used (--skip-bad)": 4}
    (notes,) = source["files"]
    assert sorted(problem.split(": ")[0] for problem in notes["bad_rows"]) == [
        f"{data}, line {number}" for number in bad
    ]
    assert all(f"left out: {problem}" in told for problem in notes["bad_rows"])


@pytest.mark.parametrize("line", ["[1]", json.dumps({"instruction": "a", "output": ""})])
def test_where_no_row_can_be_used_leaving_bad_ones_out_is_no_remedy(model, tmp_path, capsys, line):
    data = tmp_path / "mine.jsonl"
    data.write_text(f"{line}\n" * 3)
    for options in ([], ["--skip-bad"]):
        told = refused(model, data, capsys, *options)
        assert f"{data}, line 1: " in told and "it has no other rows" in told
        assert "with --skip-bad" not in told


@pytest.mark.parametrize(
    ("row", "told", "columns"),
    [
        (
            {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
            "HH's form",
            False,
        ),
        ({"prompt": "Hi", "chosen": "Hello", "rejected": "No"}, "--columns output=chosen", True),
        (
            {"chosen": said(("user", "Hi"), ("assistant", "Yes")), "rejected": []},
            "--columns messages=chosen",
            True,
        ),
        (
            {"question": "Who?", "context": "Ada did.", "answers": {"text": ["Ada"], "answer_start": [0]}},
            'answers["text"][0]',
            False,
        ),
        (
            {"input_ids": [1, 2], "labels": [1, 2], "attention_mask": [1, 1]},
            "already tokenised (input_ids)",
            False,
        ),
        ({"text": "a fine film", "label": "good"}, "--columns output=NAME", True),
        ({"text": "a fine film", "label": "good"}, "or learn whole texts with --columns text=text", True),
        ({"instruction": "Hi"}, "no column for output, and too few others", False),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else None,
)
def test_a_form_that_cannot_be_read_is_named_with_the_way_out(model, tmp_path, capsys, row, told, columns):
    data = write_json(tmp_path / "mine.jsonl", [row] * 2)
    message = refused(model, data, capsys)
    assert told in message and ("--columns" in message) == columns


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"prompt": "Clean the {}?", "chosen": "Wipe the {}.", "rejected": "Break it."}, "output=chosen"),
        (
            {
                "chosen": said(("user", "Clean the {}?"), ("assistant", "Wipe the {}.")),
                "rejected": said(("user", "Hi")),
            },
            "messages=chosen",
        ),
        ({"text": "Clean the {}?", "label": "Wipe the {}."}, ["instruction=text", "output=label"]),
    ],
)
def test_the_way_out_with_columns_works(model, tmp_path, capsys, row, columns):
    rows = [json.loads(json.dumps(row).replace("{}", thing)) for thing in THINGS]
    columns = columns if isinstance(columns, list) else [columns]
    records, *_ = prepared(model, write_json(tmp_path / "mine.jsonl", rows), capsys, "--columns", *columns)
    expected = {(f"Clean the {thing}?", f"Wipe the {thing}.") for thing in THINGS}
    assert {(record.instruction, record.output) for record in records} == expected


# Plain text


def write_story(thing: str) -> str:
    return f"Once a {thing} stood on a shelf.\n\n  Nobody knew why the {thing} was there.\n"


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"text": "{}"}, []),
        ({"Text": "{}", "id": "{}", "url": "x", "meta": {"a": 1}}, []),
        ({"story": "{}", "label": "good"}, ["text=story"]),
        ({"text": "{}", "page": "{}"}, ["group=page"]),
    ],
)
def test_whole_texts_are_learned_and_that_is_said(model, tmp_path, capsys, row, columns):
    rows = [
        {name: write_story(thing) if value == "{}" else value for name, value in row.items()}
        | ({"id": thing} if "id" in row else {})
        | ({"page": thing} if "page" in row else {})
        for thing in THINGS
    ]
    data = write_json(tmp_path / "stories.jsonl", rows)
    records, source, told = prepared(model, data, capsys, *(["--columns", *columns] if columns else []))
    assert {record.output for record in records} == set(map(write_story, THINGS))
    assert all(record.is_text and not record.instruction and not record.input for record in records)
    (warning,) = source["files"][0]["warnings"]
    name = next(name for name in row if row[name] == "{}")
    assert warning == f"plain text (column {name!r}): whole texts are learned; there is no prompt"
    assert warning in told


def test_an_instruction_and_an_output_win_over_a_text(model, tmp_path, capsys):
    data = write_json(tmp_path / "mine.jsonl", [qa(thing, text=write_story(thing)) for thing in THINGS])
    records, source, _ = prepared(model, data, capsys)
    assert not any(record.is_text for record in records) and source["files"][0]["unused"] == ["text"]
    records, *_ = prepared(model, data, capsys, "--columns", "text=text")
    assert {record.output for record in records} == set(map(write_story, THINGS))


def test_a_text_and_an_instruction_together_are_refused(model, tmp_path, capsys):
    data = write_json(tmp_path / "mine.jsonl", [qa(thing, text=write_story(thing)) for thing in THINGS])
    told = refused(model, data, capsys, "--columns", "text=text", "instruction=instruction")
    assert "--columns instruction: unknown for plain text; the left side is one of text, group, id" in told


def test_a_blank_text_is_refused_with_file_and_line(model, tmp_path, capsys):
    rows = [{"text": write_story(thing)} for thing in THINGS]
    data = write_json(tmp_path / "stories.jsonl", [rows[0], {"text": " "}, *rows[1:]])
    assert f"{data}, line 2: text is blank" in refused(model, data, capsys)
    assert len(prepared(model, data, capsys, "--skip-bad")[0]) == 20


# Several forms in one file


def test_a_file_that_prepare_wrote_is_read_again(model, tmp_path, capsys):
    """Its rows may have three forms: conversations, single turns and texts."""
    chats = [{"messages": chat_of(thing)} for thing in THINGS]
    chats[0]["tools"] = [{"type": "function", "function": {"name": "look"}}]
    turns = [{"messages": chat_of("red " + thing)[:2]} for thing in THINGS]
    write_json(tmp_path / "chats.jsonl", chats + turns)
    write_json(tmp_path / "stories.jsonl", [{"text": write_story(thing)} for thing in THINGS])
    options = ["--model", model, "--val-fraction", "0", "--json"]
    data = ["--data", f"{tmp_path}/chats.jsonl", f"{tmp_path}/stories.jsonl"]
    assert main(["prepare", *options, "--out", f"{tmp_path}/first", *data]) == 0
    written = read_records(tmp_path / "first" / "train.jsonl")
    assert len(written) == 60 and sum(bool(record.messages) for record in written) == 20
    records, left_out, notes = read_file(tmp_path / "first" / "train.jsonl", {}, "again")
    assert {json.dumps(record_to_json(record) | {"source": ""}) for record in records} == {
        json.dumps(record_to_json(record) | {"source": ""}) for record in written
    }
    assert not +left_out and notes.counts == {"answers to learn": 40}


def test_rows_of_several_forms_may_be_in_one_parquet_file(tmp_path):
    """Fields of the other forms are null there."""
    blank = dict.fromkeys(("messages", "instruction", "output", "text"))
    rows = [blank | {"messages": chat_of(thing)} for thing in THINGS[:3]]
    rows += [blank | {"instruction": "Where?", "output": "There."}, blank | {"text": write_story("boat")}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "mine.parquet")
    records, _, notes = read_file(tmp_path / "mine.parquet", {}, "mine")
    assert [record.messages for record in records[:3]] == [row["messages"] for row in rows[:3]]
    assert (records[3].instruction, records[3].output) == ("Where?", "There.")
    assert records[4].is_text and records[4].output == write_story("boat")
    assert notes.columns == {
        "messages": "messages",
        "instruction": "instruction",
        "output": "output",
        "text": "text",
    }
    assert notes.unused == []
