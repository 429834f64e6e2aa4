"""Run a command of the command line; errors and signals become messages and exit codes."""

import importlib
import io
import json
import os
import signal
import sys
from contextlib import suppress

from loratune.cli.arguments import COMMANDS, SETTINGS, build_parser
from loratune.config.base import format_flag, read_toml
from loratune.config.recipes import find_settings_file
from loratune.doctor.packages import refuse_outdated_packages
from loratune.errors import UserError
from loratune.system.console import console, make_printable, show_messages
from loratune.system.hardware import set_wait_policy
from loratune.system.memory import is_out_of_memory
from loratune.system.signals import Interrupted, interrupting_cleanly

OUT_OF_MEMORY = (
    "error: not enough memory; close other programs, choose a smaller model, or lower --max-tokens "
    "(train: also --micro-tokens, or --low-memory; evaluate and compare: --batch-size)"
)


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0 for success, 2 for bad input, 1 for any other failure, 128 + N for signal N.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter is no reason to fail
    show_messages(format_flag, SETTINGS)
    try:
        code, problems = run_to_exit_code(sys.argv[1:] if argv is None else argv)
        with suppress(OSError):  # a terminal that was closed
            for problem in problems:
                print(make_printable(problem), file=sys.stderr)
        return code
    finally:
        drop_unwritable_output()


def run_to_exit_code(argv: list[str]) -> tuple[int, list[str]]:
    """Run one command; return the exit code and the lines for stderr."""
    try:
        with interrupting_cleanly():
            return run(argv), []
    except UserError as error:
        return 2, [f"error: {problem.render(format_flag, SETTINGS)}" for problem in error.details]
    except KeyboardInterrupt as error:
        return 128 + (error.number if isinstance(error, Interrupted) else signal.SIGINT), ["interrupted"]
    except BrokenPipeError:
        return 1, []  # the reader of our output is gone (`loratune ... | head`)
    except (OSError, MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            return 2, [OUT_OF_MEMORY]
        if isinstance(error, OSError):
            return 1, [f"error: {error}"]
        raise


def drop_unwritable_output() -> None:
    """Give up output that cannot be written (`| head`, a full disk): Python would fail over it at the end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def run(argv: list[str]) -> int:
    options, unknown = build_parser().parse_known_args(argv)
    given = vars(options)
    command, as_json, config = given.pop("command"), given.pop("json"), given.pop("config", None)
    console.stderr = as_json
    from_file = read_toml(find_settings_file(config)) if config else {}
    strangers = tuple(word.split("=")[0] for word in unknown if word.startswith("-"))
    if stray := [word for word in unknown if not word.startswith("-")]:
        strangers += tuple(stray) if not strangers else ()
    fields = COMMANDS[command]
    checked = fields.validate_all(fields.merge_values(from_file, given), unknown=strangers)
    if command != "doctor":
        refuse_outdated_packages()
    set_wait_policy()
    result = importlib.import_module(f"loratune.commands.{command}").run(checked)
    if as_json:
        # ASCII alone: no letter is lost on stdout (cp1252), and no control character steers a terminal.
        print(json.dumps(result).replace("\x7f", "\\u007f"))
    if not result.get("can_train", True):
        return 2
    return 0 if result.get("finished", True) else 1
