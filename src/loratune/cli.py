"""The commands. No logic: options come from the settings, work happens in `loratune.commands`."""

import argparse
import importlib
import json
import os
import signal
import sys
import types
import typing
from contextlib import suppress
from typing import Any

from rich_argparse import RichHelpFormatter

from loratune import __version__, settings
from loratune.console import console, printable
from loratune.diagnosis.programs import refuse_outdated_packages
from loratune.errors import UserError
from loratune.machine import is_out_of_memory, share_cores
from loratune.settings import Settings, flag, read_toml
from loratune.signals import Ended, ending_cleanly

COMMANDS: dict[str, type[Settings]] = {
    "quickstart": settings.QuickstartSettings,
    "doctor": settings.DoctorSettings,
    "prepare": settings.PrepareSettings,
    "preview": settings.PreviewSettings,
    "train": settings.TrainSettings,
    "evaluate": settings.EvaluateSettings,
    "compare": settings.CompareSettings,
    "ask": settings.AskSettings,
}

OUT_OF_MEMORY = (
    "error: not enough memory; close other programs, choose a smaller model, or lower --max-tokens "
    "(train: also --micro-tokens, or --low-memory; evaluate and compare: --batch-size)"
)


class HelpFormatter(RichHelpFormatter):
    text_markup = help_markup = False  # square brackets are meant as such


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}; `{self.prog} --help` lists the options")


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 done, 2 the user's input is at fault, 1 anything else, 128 + N: signal N."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter is no reason to fail
    try:
        code, problems = outcome(sys.argv[1:] if argv is None else argv)
        with suppress(OSError):  # a terminal that was closed
            for problem in problems:
                print(printable(problem), file=sys.stderr)
        return code
    finally:
        drop_unwritable_output()


def outcome(argv: list[str]) -> tuple[int, list[str]]:
    """The exit code, and what is to be said on stderr."""
    try:
        with ending_cleanly():
            return run(argv), []
    except UserError as error:
        return 2, [f"error: {problem}" for problem in error.problems]
    except KeyboardInterrupt as error:
        return 128 + (error.number if isinstance(error, Ended) else signal.SIGINT), ["interrupted"]
    except BrokenPipeError:
        return 1, []  # the reader of our output is gone (`loratune ... | head`)
    except (OSError, MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            return 2, [OUT_OF_MEMORY]
        if isinstance(error, OSError):
            return 1, [f"error: {error}"]
        raise


def drop_unwritable_output() -> None:
    """What stdout or stderr cannot take (`| head`, a full disk) is given up, or Python would fail over it at the very end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def run(argv: list[str]) -> int:
    options, unknown = parser().parse_known_args(argv)
    given = vars(options)
    command, as_json, config = given.pop("command"), given.pop("json"), given.pop("config", None)
    console.stderr = as_json
    from_file = read_toml(config) if config else {}
    strangers = tuple(word.split("=")[0] for word in unknown if word.startswith("-"))
    if stray := [word for word in unknown if not word.startswith("-")]:
        strangers += tuple(stray) if not strangers else ()
    fields = COMMANDS[command]
    checked = fields.checked(fields.over(from_file, given), unknown=strangers)
    if command != "doctor":
        refuse_outdated_packages()
    share_cores()
    result = importlib.import_module(f"loratune.commands.{command}").run(checked)
    if as_json:
        # ASCII alone: no letter is lost on stdout (cp1252), and no control character steers a terminal.
        print(json.dumps(result).replace("\x7f", "\\u007f"))
    if not result.get("can_train", True):
        return 2
    return 0 if result.get("finished", True) else 1


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
