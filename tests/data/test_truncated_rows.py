"""Truncated rows agree with the counts of `tokenize_records`."""

import re

from hypothesis import given
from hypothesis import strategies as st

from loratune.data.example import Record
from loratune.data.template import load_template
from loratune.data.tokenize import tokenize_records
from loratune.data.truncated_rows import compute_truncations, find_truncated
from support.bpe_tokenizer import small_tokenizer

TEMPLATE = load_template("instruction")
TOKENIZER = small_tokenizer()
words = st.lists(
    st.sampled_from(["the", "answer", "is", "none,", "Ünïcode", "42", "\n", "🙂"]), max_size=40
).map(" ".join)
filled = words.filter(str.strip)
ends = st.sampled_from(["", "<|end|>", "<|endoftext|>\n", "<|end|> <|end|>"])
outputs = st.tuples(words, ends).map("".join).filter(str.strip)
records = st.lists(
    st.builds(Record, filled, words, outputs, st.just("same"), st.just("s")), min_size=1, max_size=6
)


@given(records, st.integers(8, 200))
def test_truncations_match_the_counts_of_tokenize_records(records, max_tokens):
    rows, counts = tokenize_records(records, TEMPLATE, TOKENIZER, max_tokens=max_tokens)
    found = compute_truncations(records, TEMPLATE, TOKENIZER, max_tokens=max_tokens)
    kept = [one.example for one in found if one.example]
    assert [(row.prompt, row.response) for row in kept] == [(row.prompt, row.response) for row in rows]
    count = counts["s"]
    assert sum(one.example is None for one in found) == count["dropped"]
    assert sum(one.response_tokens_cut > 0 for one in found if one.example) == count["responses_cut"]
    texts = [re.sub(r"<\|\w+\|>", "", record.output) for record in records]
    assert [not one.untruncated.response for one in found] == [not text.strip() for text in texts]
    # A dropped row may have lost its input before.
    assert (
        count["inputs_cut"] - count["dropped"]
        <= sum(one.input_tokens_cut > 0 for one in found)
        <= count["inputs_cut"]
    )


@given(records, st.integers(8, 200))
def test_input_cut_position_is_where_the_prompts_differ(records, max_tokens):
    for one in compute_truncations(records, TEMPLATE, TOKENIZER, max_tokens=max_tokens):
        if not one.example:
            continue
        at = one.input_cut_position
        assert one.example.prompt[:at] == one.untruncated.prompt[:at]
        assert len(one.example.prompt) + one.input_tokens_cut == len(one.untruncated.prompt)
        assert (
            one.example.response
            == one.untruncated.response[: len(one.untruncated.response) - one.response_tokens_cut]
        )
        if one.input_tokens_cut:
            after = TOKENIZER.decode(one.example.prompt[at:])
            # An input that is gone altogether takes its heading along, which begins like the next one.
            assert after.endswith("Response:\n") and "Instruction" not in after
        else:
            assert at == len(one.example.prompt)


@given(records, st.integers(8, 200), st.integers(1, 4))
def test_first_truncated_rows_are_found_in_order(records, max_tokens, count):
    cut = [
        one
        for one in compute_truncations(records, TEMPLATE, TOKENIZER, max_tokens=max_tokens)
        if one.is_truncated
    ]
    found = find_truncated(records, count, TEMPLATE, tokenizer=TOKENIZER, max_tokens=max_tokens)
    assert [one.record for one in found] == [one.record for one in cut[:count]]
