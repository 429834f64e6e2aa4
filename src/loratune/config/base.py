"""Config: the base of all configurations, with validation, TOML files and command-line form."""

import difflib
import reprlib
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError

from loratune.errors import Problem, UserError
from loratune.system.read import load_toml

INVALID_TEXT = "it contains a null character or bytes that are not UTF-8; rename what it stands for"


class Config(BaseModel):
    """The settings of one command: unknown names are refused, and values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    POSITIONAL: ClassVar[tuple[str, ...]] = ()  # fields that the command line takes without their names

    @classmethod
    def merge_values(cls, from_file: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        """Merge the values of a settings file and of the command line, which wins."""
        return {**from_file, **given}

    @classmethod
    def validate_all(cls, values: dict[str, Any], where: str = "", unknown: Sequence[str] = ()) -> Self:
        """Validate `values` and return them as a configuration.

        Args:
            values: setting: value, as text or as its own type.
            where: the file that they are from, for messages.
            unknown: options that the command line did not recognise.

        Raises:
            UserError: with all problems at once, each with its remedy.
        """
        problems = [cls._describe_unknown(name) for name in unknown]
        problems += [
            Problem(INVALID_TEXT, setting=name) for name, value in values.items() if has_invalid_text(value)
        ]
        try:
            config = cls(**values)
        except ValidationError as error:
            problems += [cls._describe_problem(dict(detail)) for detail in error.errors()]
            config = None
        problems += map(Problem, cls.find_contradictions(values))
        if problems or config is None:
            raise UserError(*(replace(problem, where=where) for problem in problems))
        return config

    @classmethod
    def find_contradictions(cls, values: dict[str, Any]) -> list[str]:
        """Return problems that lie in no single value but between several; settings stand in backticks."""
        return []

    @classmethod
    def _describe_unknown(cls, name: str) -> Problem:
        field = format_flag(name).removeprefix("--").replace("-", "_")
        known = [field for field in cls.model_fields if field not in cls.POSITIONAL]
        close = difflib.get_close_matches(field, known, n=1, cutoff=0.6)
        remedy = f"did you mean `{close[0]}`?" if close else "--help lists them all"
        return Problem("unknown setting", setting=name, remedy=remedy)

    @classmethod
    def _describe_problem(cls, detail: dict[str, Any]) -> Problem:
        if detail["type"] == "extra_forbidden":
            return cls._describe_unknown(str(detail["loc"][0]))
        message = detail["msg"].removeprefix("Value error, ")
        if not detail["loc"]:
            return Problem(message)
        field = str(detail["loc"][0])
        if detail["type"] == "missing":
            name = field if field in cls.POSITIONAL else f"`{field}`"
            return Problem(f"{name} is missing: {cls.model_fields[field].description}")
        message = f"{message[0].lower()}{message[1:]} (given: {reprlib.repr(detail['input'])})"
        if field in cls.POSITIONAL:
            return Problem(f"{field}: {message}")
        return Problem(message, setting=field)

    def to_toml(self) -> str:
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def to_command_line(self, name: str) -> str:
        """Return the shell command line of the command `name` with these settings; defaults are left out."""
        words = ["loratune", name]
        for field, value in self.model_dump(mode="json").items():
            default = type(self).model_fields[field].get_default(call_default_factory=True)
            if getattr(self, field) != default:
                words += format_option(field, value)
        return shlex.join(words)


def format_option(field: str, value: Any) -> list[str]:
    """Return a setting as it stands on a command line."""
    if isinstance(value, bool):
        return [format_flag(field if value else f"no_{field}")]
    if isinstance(value, dict):
        return [format_flag(field), *(f"{name}={column}" for name, column in value.items())]
    return [format_flag(field), *map(str, value if isinstance(value, list) else [value])]


def has_invalid_text(value: Any) -> bool:
    """Return whether `value` has a text with a null character or, as a file name may, invalid UTF-8."""
    if isinstance(value, dict):
        return has_invalid_text([*value, *value.values()])
    if isinstance(value, list):
        return any(map(has_invalid_text, value))
    return isinstance(value, str | Path) and any(
        letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in str(value)
    )


def format_flag(field: str) -> str:
    return "--" + field.removeprefix("--").replace("_", "-")


def read_toml(path: Path) -> dict[str, Any]:
    """Read the settings in a TOML file, whose names may have dashes. Raises UserError with file and line."""
    values: dict[str, Any] = {}
    for name, value in load_toml(path).items():
        field = name.replace("-", "_")
        if field in values:
            raise UserError(f"{path}: {name} stands twice, with a dash and with an underscore; leave one out")
        values[field] = value
    return values
