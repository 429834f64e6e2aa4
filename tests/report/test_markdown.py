import re

from hypothesis import given, settings
from hypothesis import strategies as st

from loratune.report.markdown import escape_markdown, fence_text, render_comparison_markdown
from support.evaluations import comparison, evaluation, row

MINUS = "\N{MINUS SIGN}"


@given(st.text(st.sampled_from("`~\n<> a") | st.characters(exclude_categories=["Cs"])))
def test_a_fence_ends_only_after_the_text(text):
    lines = fence_text(text).split("\n")
    fence = re.fullmatch("(`{3,})text", lines[0])[1]
    assert "\n".join(lines[1:-1]) == text and lines[-1] == fence
    assert fence not in text


@given(st.text())
def test_escaped_text_is_one_line_without_markup(text):
    line = escape_markdown(text)
    assert len(line.splitlines()) <= 1
    bare = re.sub(r"\\.", "", line)
    assert not set(bare) & set("\\`*_[]<>|#~$!")
    assert re.sub(r"\\(.)", r"\1", line) == " ".join(text.split())


@settings(max_examples=30, deadline=None)
@given(st.text(min_size=1), st.text(min_size=1))
def test_every_text_and_number_of_the_page_is_there(base, tuned):
    text = render_comparison_markdown(comparison(rows=[row(base, tuned, base)], evaluated=evaluation()))
    assert fence_text(base) in text and fence_text(tuned) in text
    assert f"| perplexity ↓ | 24.50 | 14.90\\* | 8.20 | {MINUS}45.1 % |" in text
    assert f"improved: {MINUS}0.50 nats a token" in text


def test_hostile_names_stay_in_their_cells():
    name = "a | b\n<script>"
    text = render_comparison_markdown(comparison(name, evaluation(name)))
    outside = re.sub(r"(?s)(`{3,})text\n.*?\n\1", "", text)
    assert not re.search(r"(?<!\\)<", outside)
    for block in re.findall(r"(?m)(?:^\|.*\n)+", outside):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
