"""Rows on the terminal: nothing lost, nothing added, nothing that steers the terminal."""

import re
from io import StringIO
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from loratune.report.terminal import rows
from loratune.report.terminal.rows import (
    END_STYLE,
    TARGET_STYLES,
    decode_pieces,
    escape_invisible,
    format_target,
)


@given(st.text(), st.lists(st.integers(0, 200)))
def test_pieces_join_to_the_text_wherever_tokens_end(text, ends):
    whole = text.encode("utf-8", "ignore")
    borders = sorted({0, *(end for end in ends if end < len(whole)), len(whole)})
    tokens = [whole[start:end] for start, end in pairwise(borders)]
    found = decode_pieces(tokens)
    assert "".join(found) == whole.decode()
    assert len(found) <= len(tokens)


@pytest.mark.parametrize(
    ("tokens", "shown"),
    [
        ([b"a", b"\xe2\x82", b"\xac", b"b"], ["a", "€", "b"]),
        ([b"a", b"\xe2\x82"], ["a", "\\xe2\\x82"]),  # cut in the middle of a letter
        ([b"\xff", b"a"], ["\\xff", "a"]),
        ([b"\xe2", b"a"], ["\\xe2a"]),
    ],
)
def test_tokens_that_share_a_letter_stand_together(tokens, shown):
    assert decode_pieces(tokens) == shown


@given(st.text())
def test_nothing_shown_steers_the_terminal(text):
    shown = escape_invisible(text)
    assert all(letter.isprintable() or letter == "\n" for letter in shown)
    assert re.sub("↵\n", "\n", shown).isprintable() or "\n" in text
    assert shown.count("\n") == text.count("\n")


def test_neighbouring_tokens_differ_in_colour_and_the_end_has_its_own():
    spans = Text.assemble(*format_target(["one", " two", "\x1b[0m"], coloured=True, ended=True)).spans
    assert [span.style for span in spans] == [TARGET_STYLES[0], TARGET_STYLES[1], TARGET_STYLES[0], END_STYLE]
    assert [
        span.style for span in Text.assemble(*format_target(["one"], coloured=True, ended=False)).spans
    ] == [TARGET_STYLES[0]]


@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_without_colour_brackets_say_what_is_learned(monkeypatch, environment, coloured):
    shown = StringIO()
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    terminal = Console(file=shown, force_terminal=True, _environ={"TERM": "xterm-256color", **environment})
    monkeypatch.setattr(rows, "console", terminal)
    rows.show_rows([], tokenizer=None)
    assert ("⟦what ¦is ¦learned¦■⟧" in shown.getvalue()) is not coloured
