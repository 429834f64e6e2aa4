"""UserError: one message for the command line and for Python, with the setting and the remedy apart."""

import pytest

from loratune.config.base import format_flag
from loratune.errors import Problem, UserError

KNOWN = {"adapter", "max_tokens", "micro_tokens"}


@pytest.mark.parametrize(
    ("error", "shown", "python"),
    [
        (UserError("a.jsonl, line 3: blank"), "a.jsonl, line 3: blank", "a.jsonl, line 3: blank"),
        (
            UserError("there is no such folder", setting="adapter", value="out", remedy="train one"),
            "--adapter out: there is no such folder; train one",
            "adapter=out: there is no such folder; train one",
        ),
        (
            UserError("too long", setting="max_tokens", remedy="lower it or raise `micro_tokens`"),
            "--max-tokens: too long; lower it or raise --micro-tokens",
            "max_tokens: too long; lower it or raise `micro_tokens`",
        ),
        (UserError("run `loratune train`"), "run `loratune train`", "run `loratune train`"),
        (UserError("no `unknown` here"), "no `unknown` here", "no `unknown` here"),
    ],
)
def test_settings_are_options_on_the_command_line_and_arguments_in_python(error, shown, python):
    assert [problem.render(format_flag, KNOWN) for problem in error.details] == [shown]
    assert error.problems == (python,) and str(error) == python


def test_callers_read_the_setting_and_the_remedy():
    error = UserError("first", Problem("second", setting="adapter", remedy="do this"), Problem("third"))
    assert (error.setting, error.remedy) == ("adapter", "do this")
    assert (UserError("first").setting, UserError("first").remedy) == ("", "")
