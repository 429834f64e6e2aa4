"""The options of the command line, made from the fields of each command's configuration."""

import argparse
import types
import typing
from typing import Any

from rich_argparse import RichHelpFormatter

from loratune import __version__
from loratune.config.ask import AskSettings
from loratune.config.base import Settings, flag
from loratune.config.compare import CompareSettings
from loratune.config.doctor import DoctorSettings
from loratune.config.evaluate import EvaluateSettings
from loratune.config.prepare import PrepareSettings
from loratune.config.preview import PreviewSettings
from loratune.config.quickstart import QuickstartSettings
from loratune.config.train import TrainSettings
from loratune.errors import UserError

COMMANDS: dict[str, type[Settings]] = {
    "quickstart": QuickstartSettings,
    "doctor": DoctorSettings,
    "prepare": PrepareSettings,
    "preview": PreviewSettings,
    "train": TrainSettings,
    "evaluate": EvaluateSettings,
    "compare": CompareSettings,
    "ask": AskSettings,
}


class HelpFormatter(RichHelpFormatter):
    text_markup = help_markup = False  # square brackets are meant as such


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}; `{self.prog} --help` lists the options")


def parser() -> Parser:
    top = Parser(prog="loratune", description="Fine-tune small language models with LoRA, and see, measured, whether it helped.")
    top.add_argument("--version", action="version", version=f"loratune {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for name, fields in COMMANDS.items():
        command = commands.add_parser(
            name, help=fields.__doc__, description=fields.__doc__, formatter_class=HelpFormatter, allow_abbrev=False
        )
        add_options(command, fields)
    return top


def add_options(command: argparse.ArgumentParser, fields: type[Settings]) -> None:
    """One option for each field. Values stay text here; the settings convert and check them, all at once."""
    command.add_argument(
        "--config", metavar="FILE.toml", default=argparse.SUPPRESS, help="settings file; options given here win over it"
    )
    command.add_argument("--json", action="store_true", help="print the result as one JSON object; all else goes to stderr")
    for name, field in fields.model_fields.items():
        kind = plain_type(field.annotation)
        unset = field.is_required() or field.default is None or field.default is False or field.default in ([], {})
        option: dict[str, Any] = {
            "dest": name,
            "default": argparse.SUPPRESS,
            "help": (field.description if unset else f"{field.description} (default: {show(field.default)})").replace("%", "%%"),
        }
        if kind is bool:
            # --no-NAME is there where it can change something.
            option["action"] = argparse.BooleanOptionalAction if field.default else "store_true"
        elif kind is list:
            option |= {"nargs": "+", "metavar": "NAME", "action": "extend"}
        elif kind is dict:
            option |= {"nargs": "+", "metavar": "NAME=COLUMN", "action": Pairs}
        else:
            option["metavar"] = "|".join(typing.get_args(field.annotation)) if kind is typing.Literal else metavar(name, kind)
        if name in fields.POSITIONAL:
            command.add_argument(option.pop("dest"), nargs="?", **option)
        else:
            command.add_argument(flag(name), **option)


class Pairs(argparse.Action):
    """`a=b c=d` to {"a": "b", "c": "d"}."""

    def __call__(self, parser, namespace, values, option_string=None):
        if broken := [value for value in values if "=" not in value]:
            parser.error(f"{option_string}: {broken[0]!r} is not of the form NAME=COLUMN")
        setattr(namespace, self.dest, dict(value.split("=", 1) for value in values))


def plain_type(annotation: Any) -> Any:
    """`str | None` to str, `list[str]` to list, `Literal[...]` to Literal."""
    if isinstance(annotation, types.UnionType):
        annotation = next(kind for kind in typing.get_args(annotation) if kind is not type(None))
    return typing.get_origin(annotation) or annotation


def metavar(name: str, kind: Any) -> str:
    if name == "budget":
        return "TIME"
    return {int: "N", float: "X"}.get(kind, name.upper())


def show(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return " ".join(map(str, default)) if isinstance(default, list) else str(default)
