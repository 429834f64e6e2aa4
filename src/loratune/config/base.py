"""What all configurations have in common: validation, TOML files, and their form on a command line."""

import difflib
import reprlib
import shlex
from pathlib import Path
from typing import Any, ClassVar

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError

from loratune.errors import UserError
from loratune.system.read import load_toml

INVALID_TEXT = (
    "has a character that is no text (a null, or bytes that are not UTF-8); rename what it stands for"
)


class Config(BaseModel):
    """What all settings have in common: unknown names are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    POSITIONAL: ClassVar[tuple[str, ...]] = ()  # fields that the command line takes without their names

    @classmethod
    def merge_values(cls, from_file: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        """The values of a settings file and of the command line, which wins."""
        return {**from_file, **given}

    @classmethod
    def validate_all(cls, values: dict[str, Any], origin: str = "", unknown: tuple[str, ...] = ()):
        """Validate `values`; raises one UserError with all problems, each with its remedy.

        `unknown` are options that the command line did not recognise; `origin` is put before each problem.
        """
        problems = [cls._describe_unknown(name) for name in unknown]
        problems += [
            f"{format_flag(name)}: {INVALID_TEXT}"
            for name, value in values.items()
            if has_invalid_text(value)
        ]
        try:
            settings = cls(**values)
        except ValidationError as error:
            problems += [cls._describe_problem(detail) for detail in error.errors()]
        if problems := problems + cls.find_contradictions(values):
            raise UserError(*(origin + problem for problem in problems))
        return settings

    @classmethod
    def find_contradictions(cls, values: dict[str, Any]) -> list[str]:
        """Problems that lie in no single value but between several."""
        return []

    @classmethod
    def _describe_unknown(cls, name: str) -> str:
        known = [format_flag(field) for field in cls.model_fields if field not in cls.POSITIONAL]
        close = difflib.get_close_matches(format_flag(name), known, n=1, cutoff=0.6)
        return f"{format_flag(name)}: unknown setting; " + (
            f"did you mean {close[0]}?" if close else "--help lists them all"
        )

    @classmethod
    def _describe_problem(cls, detail: dict) -> str:
        if detail["type"] == "extra_forbidden":
            return cls._describe_unknown(str(detail["loc"][0]))
        message = detail["msg"].removeprefix("Value error, ")
        if not detail["loc"]:
            return message
        field = str(detail["loc"][0])
        name = field if field in cls.POSITIONAL else format_flag(field)
        if detail["type"] == "missing":
            return f"{name} is missing: {cls.model_fields[field].description}"
        return f"{name}: {message[0].lower()}{message[1:]} (given: {reprlib.repr(detail['input'])})"

    def to_toml(self) -> str:
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def to_command_line(self, name: str) -> str:
        """The command line, for a shell, of the command `name` with these settings; defaults are left out."""
        words = ["loratune", name]
        for field, value in self.model_dump(mode="json").items():
            if getattr(self, field) != self.__class__.model_fields[field].get_default(
                call_default_factory=True
            ):
                words += format_option(field, value)
        return shlex.join(words)


def format_option(field: str, value: Any) -> list[str]:
    """A setting as it stands on a command line."""
    if isinstance(value, bool):
        return [format_flag(field if value else f"no_{field}")]
    if isinstance(value, dict):
        return [format_flag(field), *(f"{name}={column}" for name, column in value.items())]
    return [format_flag(field), *map(str, value if isinstance(value, list) else [value])]


def has_invalid_text(value: Any) -> bool:
    """Whether a text in it has a null character, which no path can have, or bytes that are no text (as a file
    name may).
    """
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
    """The settings in a TOML file, names with dashes or underscores. Raises UserError with file and line."""
    values: dict[str, Any] = {}
    for name, value in load_toml(path).items():
        field = name.replace("-", "_")
        if field in values:
            raise UserError(f"{path}: {name} stands twice, with a dash and with an underscore; leave one out")
        values[field] = value
    return values
