"""Tokenised records: loss mask, truncation, end markers and BOS."""

import re
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from loratune.data.end_markers import list_end_markers, strip_end_markers
from loratune.data.example import Record
from loratune.data.retokenize import retokenize_prompts
from loratune.data.template import Template, load_template
from loratune.data.tokenize import tokenize_records
from loratune.models.resolve import resolve_model
from loratune.models.tokenizer import Tokenizer
from support.bpe_tokenizer import small_tokenizer
from support.small_tokenizers import build_tokenizer

TEMPLATE = load_template("instruction")
TOKENIZER = small_tokenizer()
words = st.lists(
    st.sampled_from(["the", "answer", "is", "none,", "Ünïcode", "42", "there", "\n", "🙂"]), max_size=60
).map(" ".join)
filled = words.filter(str.strip)
# All of Unicode but halves of surrogate pairs, which no record has; with what looks like the template, its
# ends and marks.
MARKS = [
    "### Response:\n",
    "<|end|>",
    "<|endoftext|>",
    "{input}",
    "e\u0301",
    "\u202e",
    "\x00",
    "\u2028",
    "\r\n",
    "👩\u200d🚀",
]
anything = st.lists(st.characters(exclude_categories=["Cs"]) | st.sampled_from(MARKS), max_size=40).map(
    "".join
)
much = anything.map(lambda text: 20 * text)


def strip_markers_by_pattern(output: str) -> str:
    """The output without end markers at its end, as a pattern finds them."""
    return re.sub(r"(?:(?:<\|end\|>|<\|endoftext\|>)\s*)+\Z", "", output)


def tokenize_one(record: Record, max_tokens: int):
    rows, counts = tokenize_records([record], TEMPLATE, TOKENIZER, max_tokens=max_tokens)
    return (rows[0] if rows else None), counts[record.source]


@example(
    "the", "", "the answer is none, 42 there " * 10, 60
)  # a response that is cut: chance does not always draw one
@given(filled, words, filled, st.integers(8, 200))
def test_truncation_keeps_the_instruction_and_then_the_response(instruction, input, output, max_tokens):
    row, count = tokenize_one(Record(instruction, input, output, id="1", source="s"), max_tokens)
    whole = [*TOKENIZER.encode(output), TOKENIZER.eos_id]
    bare = len(TOKENIZER.encode(TEMPLATE.render(instruction)))
    if row is None:
        assert bare >= max_tokens and Counter(count) == Counter(
            rows=1, inputs_cut=int(bool(input)), dropped=1
        )
        return
    assert len(row.prompt) + len(row.response) <= max_tokens
    assert row.response == whole[: len(row.response)]
    # End-of-text is a target of every complete response, and of no other.
    assert (
        (row.response[-1] == TOKENIZER.eos_id)
        == (len(row.response) == len(whole))
        == (count["responses_cut"] == 0)
    )
    prompt = TOKENIZER.decode(row.prompt)
    assert prompt.startswith(f"### Instruction:\n{instruction}\n\n### ") and prompt.endswith(
        "### Response:\n"
    )
    if not count["inputs_cut"]:
        assert prompt == TEMPLATE.render(instruction, input)
    elif count["responses_cut"]:
        assert row.prompt == TOKENIZER.encode(TEMPLATE.render(instruction))


@settings(suppress_health_check=[HealthCheck.filter_too_much])  # few texts are just too long; enough are
@given(filled, filled, filled, st.integers(30, 120))
def test_truncated_input_is_a_prefix_and_barely_shorter_than_needed(instruction, input, output, max_tokens):
    row, count = tokenize_one(Record(instruction, input, output, id="1", source="s"), max_tokens)
    assume(row is not None and count["inputs_cut"] and not count["responses_cut"])
    prompt = TOKENIZER.decode(row.prompt)
    kept = prompt.removeprefix(f"### Instruction:\n{instruction}\n\n").removesuffix("### Response:\n")
    kept = kept.removeprefix("### Input:\n").removesuffix("\n\n")
    # Cutting between the bytes of one letter leaves a replacement character.
    assert input.strip().startswith(kept.rstrip("\ufffd").rstrip()) or input.startswith(kept.rstrip("\ufffd"))
    if kept:
        assert len(row.prompt) + len(row.response) > max_tokens - 24


def test_prompt_and_response_are_tokenised_separately():
    """Together, the prompt's end and what follows may join to other tokens, as " the" and "re" do here."""
    joins = Template("joins", "{instruction} {input} the", "{instruction} the")
    (row,), _ = tokenize_records(
        [Record("Say it.", "", "re is none", id="1", source="s")], joins, TOKENIZER, max_tokens=100
    )
    assert row.prompt == TOKENIZER.encode("Say it. the")
    assert row.response == [*TOKENIZER.encode("re is none"), TOKENIZER.eos_id]
    assert row.prompt + row.response[:-1] != TOKENIZER.encode("Say it. there is none")


def test_counts_are_kept_for_each_source():
    long = "the answer is none, " * 40
    records = [
        Record("a", "", "b", id="1", source="one"),
        Record("a", long, "b", id="2", source="one"),
        Record("a", "", long, id="3", source="two"),
        Record(long, "", "b", id="4", source="two"),
    ]
    rows, counts = tokenize_records(records, TEMPLATE, TOKENIZER, max_tokens=64)
    assert [row.id for row in rows] == ["1", "2", "3"]
    assert Counter(counts["one"]) == Counter(rows=2, inputs_cut=1)
    assert Counter(counts["two"]) == Counter(rows=2, responses_cut=1, dropped=1)


def test_batch_tokenisation_equals_single_rows():
    records = [
        Record(f"What is {number}?", "there " * number, "none " * number, id=str(number), source="s")
        for number in range(1, 40)
    ]
    rows, _ = tokenize_records(records, TEMPLATE, TOKENIZER, max_tokens=64)
    assert rows == [
        row for record in records for row in tokenize_records([record], TEMPLATE, TOKENIZER, max_tokens=64)[0]
    ]


@given(filled, words, filled, st.integers(8, 200), st.sampled_from(["plain", "chatml", "instruction"]))
def test_retokenised_prompts_keep_targets_and_limit(instruction, input, output, max_tokens, name):
    record, template = Record(instruction, input, output, id="1", source="s"), load_template(name)
    row, count = tokenize_one(record, max_tokens)
    assume(row is not None)
    (other,) = retokenize_prompts([record], [row], template, tokenizer=TOKENIZER, max_tokens=max_tokens)
    assert other.response == row.response and other.id == row.id
    assert 0 < len(other.prompt) <= max_tokens - len(other.response)
    if template == TEMPLATE:
        assert other == row
    direct, counts = tokenize_records([record], template, TOKENIZER, max_tokens=max_tokens)
    if not any(count[cut] or counts["s"][cut] for cut in ("inputs_cut", "responses_cut", "dropped")):
        assert direct == [other]


def check_the_mask(tokenizer, instruction, input, output):
    """Prompt and response are what the tokenizer makes of each alone, then end-of-text: nothing is searched
    in the joined ids.
    """
    (row,), counts = tokenize_records(
        [Record(instruction, input, output, id="1", source="s")], TEMPLATE, tokenizer, max_tokens=100_000
    )
    assert row.prompt == tokenizer.encode(TEMPLATE.render(instruction, input))
    assert row.response == [*tokenizer.encode(output), tokenizer.eos_id]
    assert Counter(counts["s"]) == Counter(rows=1)
    assert tokenizer.end_ids.isdisjoint(row.prompt + row.response[:-1])
    return row


@given(anything, anything, anything.filter(lambda text: strip_markers_by_pattern(text) == text))
def test_loss_mask_is_the_response_for_any_text(instruction, input, output):
    row = check_the_mask(TOKENIZER, instruction, input, output)
    assert TOKENIZER.decode(row.prompt) == TEMPLATE.render(instruction, input)
    assert TOKENIZER.decode(row.response[:-1]) == output


@settings(max_examples=50, deadline=None)
@given(anything, anything, anything.filter(lambda text: strip_markers_by_pattern(text) == text))
def test_loss_mask_is_the_response_with_smollm2(instruction, input, output):
    check_the_mask(load_smollm2_tokenizer(), instruction, input, output)


@cache
def load_smollm2_tokenizer() -> Tokenizer:
    return Tokenizer.load(resolve_model("smollm2-135m").folder)


@given(anything.filter(str.strip), much, much, st.integers(1, 400))
def test_truncation_is_counted(instruction, input, output, max_tokens):
    row, count = tokenize_one(Record(instruction, input, output, id="1", source="s"), max_tokens)
    whole = [*TOKENIZER.encode(strip_markers_by_pattern(output)), TOKENIZER.eos_id]
    assert count["rows"] == 1 and count["dropped"] == (row is None)
    assert count["end_markers_removed"] == (strip_markers_by_pattern(output) != output)
    if row is None:
        only_a_marker = (
            strip_markers_by_pattern(output) != output and not strip_markers_by_pattern(output).strip()
        )
        assert only_a_marker or len(TOKENIZER.encode(TEMPLATE.render(instruction))) >= max_tokens
        return
    assert (
        len(row.prompt) + len(row.response) <= max_tokens and row.response == whole[: len(row.response)] != []
    )
    assert count["responses_cut"] == (row.response != whole)
    assert count["inputs_cut"] or row.prompt == TOKENIZER.encode(TEMPLATE.render(instruction, input))
    # The instruction is there to its last letter.
    bare = TEMPLATE.render(instruction).partition("### Response:\n")[0]
    assert TOKENIZER.decode(row.prompt).startswith(bare) or "### Response" in instruction


@given(filled, words, st.integers(8, 200))
def test_no_target_row_has_an_empty_response(instruction, input, max_tokens):
    record = Record(instruction, input, "0.5", id="1", source="s", meta={"no_target": True})
    row, count = tokenize_one(record, max_tokens)
    if row is None:
        assert count["dropped"] == 1
    else:
        assert row.response == [] and len(row.prompt) < max_tokens and count["responses_cut"] == 0


MARKERS = list_end_markers(TOKENIZER)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("Fine.<|endoftext|>", "Fine."),
        ("Fine.<|end|>\n", "Fine."),
        ("Fine. <|im_end|><|im_end|>", "Fine. "),
        ("Fine.\n<|eot_id|>\n <|endoftext|>\n", "Fine.\n"),
        ("Fine.<end_of_turn>", "Fine."),
        ("Write <|endoftext|> at the end.", "Write <|endoftext|> at the end."),
        ("<s>HTML has it, too</s>", "<s>HTML has it, too</s>"),
        ("Fine.  \n", "Fine.  \n"),
        ("<|endoftext|>", ""),
    ],
)
def test_only_end_markers_at_the_end_are_removed(output, expected):
    assert strip_end_markers(output, MARKERS) == expected


def test_tokenizers_own_eos_is_an_end_marker():
    tokenizer = build_tokenizer("byte-level")
    assert strip_end_markers("Fine.</s>", list_end_markers(tokenizer)) == "Fine."
    # An end that is a letter of the vocabulary is none.
    letter = Tokenizer(tokenizer.hugging_face, [tokenizer.encode(".")[0]])
    assert len(letter.end_ids) == 2 and strip_end_markers("Fine.", list_end_markers(letter)) == "Fine."


@given(
    filled,
    st.text(alphabet="an swer.\n"),
    st.lists(st.sampled_from(MARKERS), min_size=1, max_size=3),
    st.integers(20, 99),
)
def test_end_markers_are_removed_and_counted(instruction, output, markers, max_tokens):
    record = Record(instruction, "", f"{output}{''.join(markers)}\n", id="1", source="s")
    row, count = tokenize_one(record, max_tokens)
    assert count["end_markers_removed"] == 1
    if not output.strip():
        assert row is None and count["dropped"] == 1
        return
    plain, plain_count = tokenize_one(replace(record, output=output), max_tokens)
    assert row == plain and Counter(count) == Counter(plain_count) + Counter(end_markers_removed=1)


def test_end_marker_inside_an_output_stays_text():
    row, count = tokenize_one(Record("Say it.", "", "Write <|end|> last.", id="1", source="s"), 100)
    assert (
        row.response.count(TOKENIZER.eos_id) == 1 and TOKENIZER.decode(row.response) == "Write <|end|> last."
    )
    assert count["end_markers_removed"] == 0


BOS_TOKENIZER = build_tokenizer("byte-level", front="<s>")


@given(filled, words, filled, st.integers(12, 200), st.sampled_from(["plain", "chatml", "instruction"]))
def test_max_tokens_includes_bos_and_truncation_keeps_it(instruction, input, output, max_tokens, name):
    record, bos = Record(instruction, input, output, id="1", source="s"), BOS_TOKENIZER.bos
    rows, _ = tokenize_records([record], TEMPLATE, BOS_TOKENIZER, max_tokens=max_tokens)
    without, _ = tokenize_records([record], TEMPLATE, BOS_TOKENIZER.without_bos(), max_tokens=max_tokens - 1)
    assert rows == [replace(row, prompt=bos + row.prompt) for row in without]
    for other in retokenize_prompts(
        [record] * len(rows), rows, load_template(name), tokenizer=BOS_TOKENIZER, max_tokens=max_tokens
    ):
        assert other.prompt[:1] == bos and len(other.prompt) + len(other.response) <= max_tokens


chat_turns = st.lists(
    st.sampled_from(["User: a b c", "Assistant: d", "User: e\nUser: f", "Assistant: " + "g " * 20]),
    max_size=9,
)


def chat_record(turns: list[str]) -> Record:
    starts = [sum(len(turn) + 1 for turn in turns[:number]) for number in range(len(turns))]
    return Record("And now?", "\n".join(turns), "Now.", id="1", source="s", meta={"turn_starts": starts})


@given(chat_turns, st.booleans(), st.integers(60, 200))
def test_chat_loses_as_few_oldest_turns_as_needed(turns, has_system, max_tokens):
    turns = ["System: be brief"] * has_system + turns
    row, count = tokenize_one(chat_record(turns), max_tokens)

    def length(turns_kept: list[str]) -> int:
        text = TEMPLATE.render("And now?", "\n".join(turns_kept)) + "Now."
        return len(TOKENIZER.encode(text)) + 1

    def left_without(oldest: int) -> list[str]:
        return turns[:has_system] + turns[has_system + oldest :]

    gone = count["turns_cut"]
    if length(left_without(len(turns) - has_system)) > max_tokens:
        assert gone == len(turns) - has_system  # not even the system message fits, which then loses its end
        return
    assert row.prompt == TOKENIZER.encode(TEMPLATE.render("And now?", "\n".join(left_without(gone))))
    assert len(row.prompt) + len(row.response) <= max_tokens
    assert gone == 0 or length(left_without(gone - 1)) > max_tokens
    assert count["inputs_cut"] == (gone > 0)


@pytest.mark.parametrize("starts", [[1], [0, 5], [0, 99], [0, 0], ["0"], [0, True], {}, None, [0, -3]])
def test_input_with_invalid_turn_starts_is_ordinary_text(starts):
    record = Record(
        "And now?", "User: a\nAssistant: b", "Now.", id="1", source="s", meta={"turn_starts": starts}
    )
    plain = replace(record, meta={})
    assert (
        tokenize_one(record, 64)[0] == tokenize_one(plain, 64)[0]
        and tokenize_one(record, 64)[1]["turns_cut"] == 0
    )
