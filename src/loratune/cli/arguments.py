"""Make the options of the command line from the fields of each command's configuration."""

import argparse
import types
import typing
from collections.abc import Sequence
from typing import Any

from pydantic.fields import FieldInfo
from rich_argparse import RichHelpFormatter

from loratune import __version__
from loratune.config.ask import AskConfig
from loratune.config.base import Config, format_flag
from loratune.config.compare import CompareConfig
from loratune.config.doctor import DoctorConfig
from loratune.config.evaluate import EvaluateConfig
from loratune.config.prepare import PrepareConfig
from loratune.config.preview import PreviewConfig
from loratune.config.quickstart import QuickstartConfig
from loratune.config.recipes import list_recipes
from loratune.config.train import TrainConfig
from loratune.errors import UserError

COMMANDS: dict[str, type[Config]] = {
    "quickstart": QuickstartConfig,
    "doctor": DoctorConfig,
    "prepare": PrepareConfig,
    "preview": PreviewConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "compare": CompareConfig,
    "ask": AskConfig,
}

# Every setting of every command: where a message names one in backticks, the command line shows its option.
SETTINGS = frozenset(name for config_class in COMMANDS.values() for name in config_class.model_fields)


class HelpFormatter(RichHelpFormatter):
    text_markup = help_markup = False  # square brackets are meant as such


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}; `{self.prog} --help` lists the options")


def build_parser() -> Parser:
    top = Parser(
        prog="loratune",
        description="Fine-tune small language models with LoRA, and see, measured, whether it helped.",
    )
    top.add_argument("--version", action="version", version=f"loratune {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for name, fields in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=fields.__doc__,
            description=fields.__doc__,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        add_options(command, fields)
    return top


def add_options(command: argparse.ArgumentParser, config_class: type[Config]) -> None:
    """Add an option for each field.

    Values stay text here; the configuration converts and checks them, all at once.
    """
    command.add_argument(
        "--config",
        metavar="FILE.toml",
        default=argparse.SUPPRESS,
        help="settings file, or the name of a recipe that comes with loratune (`train`: "
        f"{', '.join(list_recipes())}); options given here win over it",
    )
    command.add_argument(
        "--json", action="store_true", help="print the result as one JSON object; all else goes to stderr"
    )
    for name, field in config_class.model_fields.items():
        kind = unwrap_type(field.annotation)
        option: dict[str, Any] = {
            "dest": name,
            "default": argparse.SUPPRESS,
            "help": format_help(field).replace("%", "%%"),
        }
        if kind is bool:
            # --no-NAME exists where it can change something.
            option["action"] = argparse.BooleanOptionalAction if field.default else "store_true"
        elif kind is list:
            option |= {"nargs": "+", "metavar": "NAME", "action": "extend"}
        elif kind is dict:
            option |= {"nargs": "+", "metavar": "NAME=COLUMN", "action": KeyValueAction}
        elif kind is typing.Literal:
            option["metavar"] = "|".join(typing.get_args(field.annotation))
        else:
            option["metavar"] = choose_metavar(name, kind)
        if name in config_class.POSITIONAL:
            command.add_argument(option.pop("dest"), nargs="?", **option)
        else:
            command.add_argument(format_flag(name), **option)


def format_help(field: FieldInfo) -> str:
    """Return a field's description, with its default unless that is empty or off."""
    description = field.description or ""
    if field.is_required() or field.default is None or field.default is False or field.default in ([], {}):
        return description
    return f"{description} (default: {format_default(field.default)})"


class KeyValueAction(argparse.Action):
    """Turn `a=b c=d` into {"a": "b", "c": "d"}."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        pairs = list(map(str, values or ()))
        if broken := [pair for pair in pairs if "=" not in pair]:
            parser.error(f"{option_string}: {broken[0]!r} is not of the form NAME=COLUMN")
        setattr(namespace, self.dest, dict(pair.split("=", 1) for pair in pairs))


def unwrap_type(annotation: Any) -> Any:
    """Return str for `str | None`, list for `list[str]`, Literal for `Literal[...]`."""
    if isinstance(annotation, types.UnionType):
        annotation = next(kind for kind in typing.get_args(annotation) if kind is not type(None))
    return typing.get_origin(annotation) or annotation


def choose_metavar(name: str, kind: Any) -> str:
    if name == "budget":
        return "TIME"
    return {int: "N", float: "X"}.get(kind, name.upper())


def format_default(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return " ".join(map(str, default)) if isinstance(default, list) else str(default)
