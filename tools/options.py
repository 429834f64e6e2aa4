"""Write the reference of all options, `docs/options.md`, from the configurations.

python -m tools.options
"""

import types
import typing
from pathlib import Path

from pydantic.fields import FieldInfo

from loratune.cli.arguments import COMMANDS
from loratune.config.base import Config, format_flag
from loratune.system.atomic import write_text

PAGE = Path(__file__).parents[1] / "docs" / "options.md"
INTRODUCTION = """\
<!-- `python -m tools.options` writes this file from src/loratune/config. -->
# Options

Every command also takes `--config FILE.toml`, a settings file with the same names, or the name of a
[recipe](../src/loratune/recipes): dolly, finqa, gpt2, small_memory, smollm2. Options override it.
`--json` prints the result as one JSON object, and everything else to stderr. In Python the options are
arguments by the same names with underscores ([python-api.md](python-api.md)). A mistyped name is refused
with a suggestion.
"""


def main() -> None:
    write_text(PAGE, render_page())


def render_page() -> str:
    return "\n".join([INTRODUCTION, *(render_command(name, config) for name, config in COMMANDS.items())])


def render_command(name: str, config: type[Config]) -> str:
    rows = [
        f"| {format_name(field, config)} | {format_type(field, info)} | {format_default(info)} "
        f"| {escape(info)} |"
        for field, info in sort_own_first(config)
    ]
    title = f"## loratune {name}\n\n{(config.__doc__ or '').strip()}\n"
    return "\n".join([title, "| option | value | default | |", "|---|---|---|---|", *rows, ""])


def sort_own_first(config: type[Config]) -> list[tuple[str, FieldInfo]]:
    """Return the fields, those of the command itself before those that several commands share."""
    own = config.__annotations__
    return sorted(config.model_fields.items(), key=lambda item: item[0] not in own)


def format_name(field: str, config: type[Config]) -> str:
    if field in config.POSITIONAL:
        return f"`{field}`"
    flag = format_flag(field)
    # An option that is on by default is switched off by its other form.
    return f"`{flag}`, `--no-{flag[2:]}`" if config.model_fields[field].default is True else f"`{flag}`"


def format_type(field: str, info: FieldInfo) -> str:
    """Return what the value is, in a word or as the choices."""
    if field == "budget":
        return "time"
    annotation = info.annotation
    if isinstance(annotation, types.UnionType):
        annotation = next(kind for kind in typing.get_args(annotation) if kind is not type(None))
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return ", ".join(map(str, typing.get_args(annotation)))
    if origin is list:
        return "one or more"
    if origin is dict:
        return "NAME=COLUMN ..."
    names = {bool: "on or off", int: "whole number", float: "number", Path: "path", str: "text"}
    return names.get(annotation, "text")


def format_default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if value is None or value in ([], {}):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{' '.join(map(str, value)) if isinstance(value, list) else value}`"


def escape(info: FieldInfo) -> str:
    return (info.description or "").replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    main()
