"""No output can control the terminal, wherever its text comes from."""

import contextlib
import io
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.table import Table

from loratune.cli import main
from loratune.errors import UserError
from loratune.report.terminal.comparison import show_comparison
from loratune.system.console import TolerantConsole, make_printable, say, warn
from loratune.system.messages import track

HOSTILE = [
    "\x1b]0;another title\x07",  # OSC: sets the window's title, on some terminals far more
    "\x1b[2J\x1b[H",  # CSI: clears the screen
    "\x9b31m\x90q\x9d",  # the same without ESC
    "a\x08\x7f\rb",
    "\x00\ud800",
    "\u202egpj.exe\u2066",
    "one\u2028two\u2029three\x85four\x0bfive",
]
MARKUP = ["[/bold]", "[link=https://x]a[/link]", "[red]a", ":boom:"]
ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
OURS = re.compile(r"\x1b\[[0-9;]*m")  # what rich itself writes: colours


def render(show) -> str:
    """What `show(console)` writes to a terminal, without its colours."""
    terminal = TolerantConsole(
        file=io.StringIO(),
        force_terminal=True,
        highlight=False,
        markup=False,
        emoji=False,
        width=400,
        legacy_windows=False,
    )
    show(terminal)
    return OURS.sub("", terminal.file.getvalue())


@given(st.text(st.sampled_from("\x1b[]m\x07\x9b\u202e a\n\t") | st.characters()))
def test_make_printable_replaces_control_characters_only(text):
    safe = make_printable(text)
    assert not ACTING.search(safe) and len(safe) == len(text)
    assert all(one == other or ACTING.match(other) for one, other in zip(safe, text, strict=True))


@pytest.mark.parametrize(
    "text",
    [
        "naïve\xa0é",
        "e\u0301",
        "\u0645\u06cc\u200c\u062e",
        "שלום",
        "👩\u200d🚀",
        "日本\u3000",
        "a\nb\tc",
        "\U0001d4b3",
    ],
)
def test_letters_of_every_script_are_printable(text):
    assert make_printable(text) == text


@pytest.mark.parametrize("text", HOSTILE + MARKUP)
def test_no_output_carries_control_characters(text):
    table = Table(text, title=text, caption=text)
    table.add_row(text)
    for show in (lambda to: to.print(text), lambda to: to.print(table), lambda to: to.rule(text)):
        output = render(show)
        assert not ACTING.search(output)
        if text in MARKUP:
            assert text in output


@pytest.mark.parametrize("text", HOSTILE + MARKUP)
def test_messages_bars_and_comparisons_are_printable(text, capsys):
    say(text)
    warn(text)
    assert list(track([1], text)) == [1]
    of_side = {"eos_rate": 0.5, "mean_tokens": 3.0, "rep_4": 0.1}
    row = {"prompt": text, "fine_tuned": text, "regular": text}
    for side in ("fine_tuned", "regular"):
        row |= {f"{side}_tokens": 3, f"{side}_ended": "eos", f"{side}_result": text}
    show_comparison([row], {"fine_tuned": of_side, "regular": of_side})
    captured = capsys.readouterr()
    assert not ACTING.search(captured.out + captured.err)
    if text in MARKUP:
        assert captured.out.count(text) >= 4


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("kind", [UserError, OSError])
def test_error_messages_are_printable(text, kind, capsys, monkeypatch):
    def fail(_):
        raise kind(f"{text}: no such file")

    monkeypatch.setattr(main, "run", fail)
    assert main.main([]) in (1, 2)
    error = capsys.readouterr().err
    assert "error: " in error and not ACTING.search(error)


@settings(max_examples=20, deadline=None)
@given(st.text(st.sampled_from('\x1b\x7f\x9b\x85\u2028"\\a') | st.characters(exclude_categories=["Cs"])))
def test_json_output_is_valid_and_printable(text):
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(out):
        patched.setattr("loratune.commands.compare.run", lambda _: {"prompt": text})
        assert main.main(["compare", "--json"]) == 0
    assert json.loads(out.getvalue()) == {"prompt": text}
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", out.getvalue())
