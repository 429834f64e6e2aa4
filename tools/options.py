"""Write docs/options.md, the reference of every command and option: `python -m tools.options`.

Names, choices, ranges, defaults and texts come from the classes that the command line is made of.
"""

import inspect
import re
import typing
from collections.abc import Iterable
from pathlib import Path

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from loratune.cli.arguments import COMMANDS, format_default, unwrap_type
from loratune.config import shared
from loratune.config.base import Config, format_flag
from loratune.config.recipes import list_recipes
from loratune.system.atomic import write_text

PAGE = Path(__file__).parents[1] / "docs" / "options.md"

INTRODUCTION = """\
# Commands and options

This page is written by `python -m tools.options`, and a test fails when it is out of date.
`loratune COMMAND --help` shows the same on the terminal.

In a settings file (`--config FILE.toml`) and in [Python](python-api.md), an option has the same name without
the leading dashes and with underscores: `--batch-tokens 512` is `batch_tokens = 512`. A list such as
`--data dolly faq.csv` is `data = ["dolly", "faq.csv"]`; a switch is `true` or `false`. Options on the command
line take precedence over the settings file. A mistyped name is refused with a suggestion.
"""

RECIPES = (
    f"[recipe](../src/loratune/recipes) for `train`: {', '.join(f'`{name}`' for name in list_recipes())}"
)
EVERY_COMMAND = f"""\
## Every command

| option | value | meaning |
|---|---|---|
| `--config` | path or name | read settings from this .toml file or from a shipped {RECIPES} |
| `--json` | switch | print the result as one JSON object on stdout; everything else goes to stderr |
| `--help` | switch | list the command's options |

`loratune --version` prints the version.

The exit code is 0 for success, 2 for bad input or a machine that cannot train, 1 for any other failure and
for a run that was stopped and can be resumed, and 128 + N after signal N (130 after Ctrl-C).
"""

# Options that several commands have are described once, under the title of the class that defines them.
SHARED: dict[type[Config], str] = {
    shared.BaseModelConfig: "Base model",
    shared.AdapterConfig: "Adapter",
    shared.BaseOverrideConfig: "Another base or template",
    shared.RowConfig: "Rows",
    shared.MachineConfig: "Machine",
    shared.SamplingConfig: "Answers",
    shared.DecodingConfig: "Answers in batches",
    shared.DryRunConfig: "Dry run",
}
# The long list of `train` reads better in parts: the title that stands before a field.
TITLES: dict[str, dict[str, str]] = {
    "train": {
        "data": "Data, adapter and run",
        "targets": "The form of the adapter",
        "epochs": "When to stop",
        "learning_rate": "Optimiser",
        "micro_tokens": "Memory and speed",
        "validations": "Validation",
        "seed": "Seeds",
    }
}


def main() -> None:
    write_text(PAGE, build_page())


def build_page() -> str:
    """Return the whole page."""
    sections = [build_command(name, config_class) for name, config_class in COMMANDS.items()]
    groups = [build_group(group) for group in SHARED]
    shared_title = "## Options that several commands share\n"
    return "\n".join([INTRODUCTION, build_contents(), EVERY_COMMAND, *sections, shared_title, *groups])


def build_contents() -> str:
    rows = [f"| [`{name}`](#loratune-{name}) | {fields.__doc__} |" for name, fields in COMMANDS.items()]
    return "\n".join(["| command | what it does |", "|---|---|", *rows, ""])


def build_command(name: str, config_class: type[Config]) -> str:
    """Return the section of a command: its own options, and links to those that it shares."""
    lines = [f"## loratune {name}", "", str(config_class.__doc__), ""]
    own = {
        field: info
        for field, info in config_class.model_fields.items()
        if not find_group(config_class, field)
    }
    titles = TITLES.get(name, {})
    part: dict[str, FieldInfo] = {}
    for field, info in own.items():
        if field in titles:
            lines += build_table(part, config_class)
            part = {}
            lines += [f"### {titles[field]}", ""]
        part[field] = info
    lines += build_table(part, config_class)
    groups = {find_group(config_class, field): None for field in config_class.model_fields}
    links = [link_to(SHARED[group]) for group in SHARED if group in groups]
    if links:
        lines += [f"Shared with other commands: {', '.join(links)}.", ""]
    return "\n".join(lines)


def build_group(group: type[Config]) -> str:
    """Return the section of options that several commands share."""
    fields = {name: info for name, info in group.model_fields.items() if find_group(group, name) is group}
    users = [
        f"[`{name}`](#loratune-{name})"
        for name, config_class in COMMANDS.items()
        if any(find_group(config_class, field) is group for field in fields)
    ]
    lines = [f"### {SHARED[group]}", "", f"Used by {', '.join(users)}.", "", *build_table(fields, group)]
    return "\n".join(lines)


def find_group(config_class: type[Config], field: str) -> type[Config] | None:
    """Return the shared class that defines a command's field; None where the command does."""
    definers = [one for one in config_class.__mro__ if field in inspect.get_annotations(one)]
    return definers[0] if definers and definers[0] in SHARED else None


def build_table(fields: dict[str, FieldInfo], config_class: type[Config]) -> list[str]:
    if not fields:
        return []
    lines = ["| option | value | default | meaning |", "|---|---|---|---|"]
    for name, info in fields.items():
        cells = (
            describe_name(name, info, config_class),
            describe_value(name, info),
            describe_default(info),
            describe_meaning(info),
        )
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return [*lines, ""]


def describe_name(name: str, info: FieldInfo, config_class: type[Config]) -> str:
    if name in config_class.POSITIONAL:
        return f"`{name.upper()}`"
    if info.default is True:
        return f"`{format_flag(name)}`, `{format_flag(f'no_{name}')}`"
    return f"`{format_flag(name)}`"


def describe_value(name: str, info: FieldInfo) -> str:
    """Say what may stand after an option: choices, or a type with its range."""
    kind = unwrap_type(info.annotation)
    if kind is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(info.annotation))
    if name == "budget":
        return "time, such as `90s`, `10m` or `1h30m`"
    if kind in (int, float):
        return ", ".join([{int: "whole number", float: "number"}[kind], *describe_range(find_bounds(info))])
    if kind is list:
        return "paths" if "Path" in str(info.annotation) else "names"
    return {bool: "switch", dict: "NAME=COLUMN ...", Path: "path"}.get(kind, "text")


def find_bounds(info: FieldInfo) -> list[object]:
    """Return a field's bounds, also those that stand in the type of a value that may be None."""
    inner = [one for part in typing.get_args(info.annotation) for one in getattr(part, "__metadata__", ())]
    return [*info.metadata, *inner]


def describe_range(bounds: Iterable[object]) -> list[str]:
    words = []
    for bound in bounds:
        if isinstance(bound, Gt):
            words.append(f"above {bound.gt}")
        elif isinstance(bound, Ge):
            words.append(f"at least {bound.ge}")
        elif isinstance(bound, Lt):
            words.append(f"below {bound.lt}")
        elif isinstance(bound, Le):
            words.append(f"at most {bound.le}")
    return words


def describe_default(info: FieldInfo) -> str:
    """Return the default; nothing where there is none, or where the text explains it."""
    if info.is_required():
        return "required"
    if info.default is None or info.default in ([], {}):
        return ""
    if isinstance(info.default, bool):
        return format_default(info.default)
    return f"`{format_default(info.default)}`"


def describe_meaning(info: FieldInfo) -> str:
    """Return the help text with the options in it marked as code."""
    return re.sub(r"(?<![`\w])--[a-z][a-z-]*", r"`\g<0>`", info.description or "")


def link_to(title: str) -> str:
    return f"[{title.lower()}](#{title.lower().replace(' ', '-')})"


if __name__ == "__main__":
    main()
