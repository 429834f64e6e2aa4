"""The measured figures: each file is valid, its commands can still be given, and the pages are made from
them.
"""

import importlib
import re
import shlex
from pathlib import Path

import pytest
from pydantic import ValidationError

from benchmarks import report
from benchmarks.record import RESULTS_FOLDER, ROOT, Column, Result, Row, read_result
from loratune.cli.arguments import COMMANDS, build_parser
from loratune.config.base import read_toml
from loratune.errors import UserError

RESULTS = sorted(path.stem for path in RESULTS_FOLDER.glob("*.json"))
RECIPE_FOLDERS = (ROOT / "recipes", ROOT / "src" / "loratune" / "recipes")


def check_command(command: str) -> None:
    """Raise what the program itself raises where it is given a command that it does not know."""
    words = shlex.split(command)
    if words[:2] == ["taskset", "-c"]:
        words = words[3:]
    match words:
        case ["loratune", *options]:
            check_loratune_command(options)
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        case ["python", "-m", "pytest", *options]:
            paths = [word for word in options if word.startswith("tests")]
            assert paths
            assert all((ROOT / path).exists() for path in paths)
        case ["python", "-m", module, *options] if module.startswith("benchmarks."):
            importlib.import_module(module).build_parser().parse_args(options)
        case _:
            raise AssertionError(f"nothing in this repository is started by {command!r}")


def check_loratune_command(words: list[str]) -> None:
    given = vars(build_parser().parse_args(words))
    fields, recipe = COMMANDS[given.pop("command")], given.pop("config", None)
    given.pop("json")
    fields.validate_all(fields.merge_values(read_toml(find_recipe(recipe)) if recipe else {}, given))


def find_recipe(name: str) -> Path:
    file = f"{Path(name).stem}.toml"
    return next(folder / file for folder in RECIPE_FOLDERS if (folder / file).is_file())


def list_recipes(command: str) -> list[str]:
    return re.findall(r"--config (\S+)", command)


@pytest.mark.parametrize("name", RESULTS)
def test_a_results_file_is_valid_and_its_commands_can_be_given(name):
    result = read_result(name)
    for command in result.commands:
        check_command(command)
        assert all(map(find_recipe, list_recipes(command)))
        recorded = re.findall(r"--record (\S+)", command)
        assert recorded in ([], [name])


@pytest.mark.parametrize("name", RESULTS)
def test_a_results_file_names_no_place_outside_the_repository(name):
    assert not re.search(r"(^|[\s\"'=])[/~]\w", (RESULTS_FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "command",
    [
        "loratune trian --model gpt2",
        "loratune train --ranck 16",
        "loratune train --rank none",
        "loratune train --config recipes/none.toml",
        "python -m benchmarks.none",
        "python -m benchmarks.peers --colour",
        "python -m pytest tests/none",
        "make none",
        "curl example.org",
    ],
)
def test_a_command_that_nobody_can_give_is_found(command):
    with pytest.raises((UserError, AssertionError, ImportError, SystemExit, StopIteration)):
        check_command(command)


def test_the_pages_are_what_the_command_writes():
    for name, text in report.render_pages().items():
        assert (report.OUT / name).read_text(encoding="utf-8") == text, "run `python -m benchmarks.report`"


def test_a_result_on_no_page_is_refused(tmp_path, monkeypatch):
    (tmp_path / "alone.json").write_text("{}", encoding="utf-8")
    (tmp_path / "pages").mkdir()
    monkeypatch.setattr(report, "RESULTS_FOLDER", tmp_path)
    monkeypatch.setattr(report, "PAGES_FOLDER", tmp_path / "pages")
    with pytest.raises(ValueError, match="alone"):
        report.render_pages()


def make_result(**changes) -> Result:
    columns = [
        Column(key="speed", title="speed", unit="x", decimals=2),
        Column(key="interval", title="95 %", decimals=1, signed=True, separator=" to "),
    ]
    fields = {
        "title": "Title",
        "what": "What.",
        "commands": ["make test"],
        "commit": "0123456",
        "date": "2026-01-02",
        "machine": "a machine",
        "columns": columns,
        "rows": [Row(name="one", values={"speed": 2}), Row(name="two", values={"interval": [-1, 1]})],
    }
    return Result.model_validate(fields | changes)


def test_a_table_has_a_cell_for_each_number_and_blanks_where_there_is_none():
    result = make_result()
    assert result.format_table().splitlines()[2:] == ["| one | 2.00x |  |", "| two |  | -1.0 to +1.0 |"]
    assert result.format_table(["interval"]).splitlines()[2:] == ["| one |  |", "| two | -1.0 to +1.0 |"]
    assert result.format_cell("one", "speed") == "2.00x"


@pytest.mark.parametrize(
    "changes",
    [
        {"commit": "unknown"},
        {"commands": []},
        {"rows": [Row(name="one", values={"size": 1})]},
        {"rows": [Row(name="one", values={}), Row(name="one", values={})]},
        {"author": "somebody"},
    ],
)
def test_an_invalid_result_is_refused(changes):
    with pytest.raises(ValidationError):
        make_result(**changes)


@pytest.mark.parametrize("asked, said", [(False, True), (True, False), (None, False)])
def test_a_base_that_is_not_asked_in_its_own_template_is_marked(asked, said):
    text = report.format_result(make_result(base_in_own_template=asked))
    assert (report.BASE_ASKED_IN_OUR_TEMPLATE in text) == said


def test_every_comparison_with_a_base_says_how_it_is_asked():
    for name in RESULTS:
        result = read_result(name)
        compares = any(column.key.startswith("base") for column in result.columns)
        assert not compares or result.base_in_own_template is not None, name
