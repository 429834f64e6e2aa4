"""UserError: the user's input is at fault, and here is what to do."""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

NAMED_SETTING = re.compile(r"`([a-z][a-z0-9_]*)`")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    In `text` and `remedy` other settings stand in backticks by their Python names: "lower `max_tokens`".
    """

    text: str
    setting: str = ""  # the setting at fault, as `max_tokens`; "" where none is
    value: Any = None  # what it was set to, where the message shows it
    remedy: str = ""
    where: str = ""  # such as the file with the setting

    def render(self, format_setting: Callable[[str], str] | None = None, known: Collection[str] = ()) -> str:
        """Return the whole message in one line.

        Args:
            format_setting: how settings are written where the message is read, such as `--max-tokens`;
                by default as Python arguments.
            known: the settings that are rewritten so where they stand in backticks.
        """
        message = "; ".join(filter(None, (self.text, self.remedy)))
        if self.value is not None:
            message = f"{self.value}: {message}"
        setting, before_value = self.setting, "="
        if format_setting is not None:
            message = format_named_settings(message, format_setting, known)
            setting, before_value = format_setting(self.setting) if self.setting else "", " "
        if setting:
            message = f"{setting}{': ' if self.value is None else before_value}{message}"
        return f"{self.where}: {message}" if self.where else message

    def quote(self) -> str:
        """Return the message as part of another: its settings stand in backticks, for the outer one."""
        return self.render(lambda setting: f"`{setting}`")


def format_named_settings(text: str, format_setting: Callable[[str], str], known: Collection[str]) -> str:
    """Rewrite the `known` settings that stand in backticks in a text."""
    return NAMED_SETTING.sub(lambda name: format_setting(name[1]) if name[1] in known else name[0], text)


class UserError(Exception):
    """What is wrong, where, and what to do about it.

    The command line prints each problem without a traceback and exits with code 2; Python callers read
    `setting` and `remedy`. These and `value` belong to a single problem; several are given as `Problem`s.
    """

    def __init__(self, *problems: str | Problem, setting: str = "", value: Any = None, remedy: str = ""):
        self.details = tuple(
            problem if isinstance(problem, Problem) else Problem(problem, setting, value, remedy)
            for problem in problems
        )
        super().__init__("\n".join(self.problems))

    @property
    def problems(self) -> tuple[str, ...]:
        """The messages as a Python caller reads them."""
        return tuple(problem.render() for problem in self.details)

    @property
    def setting(self) -> str:
        """The first setting that is at fault; "" where none is."""
        return next((problem.setting for problem in self.details if problem.setting), "")

    @property
    def remedy(self) -> str:
        """What to do, of all problems that say so."""
        return "; ".join(problem.remedy for problem in self.details if problem.remedy)


class FileError(UserError):
    """The file system refuses (a full disk, a read-only folder). What was written before is whole."""
