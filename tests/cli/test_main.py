"""The command line itself: help without waiting, mistakes without tracebacks, recipes that are valid."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from loratune.cli.arguments import COMMANDS, build_parser
from loratune.cli.main import main
from loratune.config.base import format_flag, read_toml
from loratune.config.evaluate import EvaluateConfig
from loratune.config.prepare import PrepareConfig
from loratune.config.recipes import find_settings_file, list_recipes
from loratune.config.shared import parse_duration
from loratune.config.train import TrainConfig
from loratune.errors import UserError
from support.deadline import enforce_deadline

ROOT = Path(__file__).parents[2]


def test_help_does_not_import_torch():
    code = (
        "import sys; from loratune.cli.arguments import build_parser; build_parser().format_help(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("wish", "spins"), [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")]
)
def test_how_threads_wait_is_said_before_torch_is_loaded(wish, spins):
    code = """
import importlib, os, sys
from loratune.cli.main import main
def stop(name):
    sys.exit(f"{os.environ.get('GOMP_SPINCOUNT')}, {'torch' in sys.modules}")
importlib.import_module = stop
main(["doctor"])
"""
    clean = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = subprocess.run([sys.executable, "-c", code], env=clean | wish, stderr=subprocess.PIPE, text=True)
    assert done.stderr.strip() == f"{spins}, False"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_is_in_the_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    fields = COMMANDS[command]
    assert all(
        (name.upper() if name in fields.POSITIONAL else format_flag(name)) in shown
        for name in fields.model_fields
    )


@pytest.mark.parametrize(
    "words", [["tarin"], [], ["train", "--rank"], ["train", "stray"], ["compare", "--rank", "3"]]
)
def test_mistakes_exit_with_2_and_one_line_each(words, capsys):
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert "Traceback" not in told


@pytest.mark.parametrize("script", ["prepdata.py", "tune.py", "inference.py"])
def test_the_scripts_are_the_commands(script):
    result = subprocess.run(
        [sys.executable, ROOT / script, "--no-such-option"], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert "unknown setting" in result.stderr


@pytest.mark.parametrize("recipe", list_recipes())
def test_recipes_are_valid(recipe):
    TrainConfig.validate_all(read_toml(find_settings_file(recipe)))


def train_without_running(monkeypatch, *words):
    """The exit code of `loratune train`, and the settings that it was to run with."""
    runs = []
    monkeypatch.setattr("loratune.commands.train.run", lambda settings: runs.append(settings) or {})
    return main(["train", *map(str, words)]), *runs


@pytest.mark.parametrize("name", ["dolly", "recipes/dolly.toml", "./recipes/dolly.toml"])
def test_a_recipe_is_found_by_its_name(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    Path("dolly").mkdir()  # a folder is no settings file
    code, settings = train_without_running(monkeypatch, "--config", name, "--rank", "8")
    assert code == 0
    assert (settings.data, settings.budget, settings.rank, settings.alpha) == (
        Path("data/dolly"),
        7200,
        8,
        64,
    )


@pytest.mark.parametrize("name", ["dolly", "recipes/dolly.toml"])
def test_a_file_of_ones_own_wins_over_a_recipe(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    Path("recipes").mkdir()
    Path(name).write_text("rank = 3")
    code, settings = train_without_running(monkeypatch, "--config", name)
    assert (code, settings.rank, settings.data) == (0, 3, TrainConfig().data)


@pytest.mark.parametrize("name", ["doly", "dolly.toml", "mine/dolly.toml", "../recipes/dolly.toml", "a\0"])
def test_a_name_of_no_recipe_is_refused_with_the_names_of_all(monkeypatch, tmp_path, capsys, name):
    monkeypatch.chdir(tmp_path)
    assert train_without_running(monkeypatch, "--config", name) == (2,)
    told = " ".join(capsys.readouterr().err.split())
    assert (
        "no such file and no such recipe; the recipes are dolly, finqa, gpt2, small_memory, smollm2" in told
    )


def test_help_names_the_recipes(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "dolly, finqa, gpt2, small_memory, smollm2" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("1.5h", 5400), ("20", 20)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["soon", "10x", "m10", "1h30", "", "1" * 10**5, "1" * 10**5 + "x", "1h" * 10**5, "\u0661h"]
)
def test_durations_that_are_none(text):
    with enforce_deadline():
        try:
            assert parse_duration(text) == math.inf  # which is more than the setting takes
        except ValueError as error:
            assert "not a duration" in str(error)


@pytest.mark.parametrize(
    "value", ["a\0b", "a\udcffb", ["dolly", "a\0"], {"instruction": "\ud800"}, Path("a\0b")]
)
@pytest.mark.parametrize("name", ["out", "data", "model", "columns", "template"])
def test_a_setting_that_is_no_text_is_refused_before_any_work(name, value):
    with pytest.raises(UserError, match=f"{name}: it contains a null character"):
        PrepareConfig.validate_all({name: value})


def test_numbers_of_thousands_of_digits_are_refused():
    with pytest.raises(UserError, match="max_tokens: "):
        TrainConfig.validate_all({"max_tokens": "9" * 5000, "micro_tokens": "9" * 5001})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("max-tokens = 64\nmax_tokens = 65", "max_tokens stands twice, with a dash and with an underscore"),
        ("rank = 0x" + "f" * 40, "rank holds a whole number of more than 64 bits"),
        ("rank = " + "9" * 5000, "cannot be read as TOML"),
        ("a = " + "[" * 5000, "nested too deeply"),
        ("a." * 10**5 + "b = 1", "characters are too many for a file of settings"),
        ("rank = 1\nrank = 2", "Cannot overwrite a value"),
        ("rank = \xe9", "line 1: not UTF-8 text"),
    ],
)
def test_settings_files_that_cannot_be_read(tmp_path, content, told):
    path = tmp_path / "mine.toml"
    path.write_bytes(content.encode("latin-1"))
    with enforce_deadline(), pytest.raises(UserError, match=r"mine\.toml") as refused:
        read_toml(path)
    assert told in str(refused.value)


@pytest.mark.parametrize("words", [["a", "b"], ["a", "--adapter", "b"]])
def test_a_list_may_be_given_at_once_or_one_by_one(words):
    assert vars(build_parser().parse_args(["evaluate", "--adapter", *words]))["adapter"] == ["a", "b"]
    assert EvaluateConfig.validate_all({"adapter": "a"}).adapter == [
        Path("a")
    ]  # as a settings file may have it


def test_a_switch_that_is_on_can_be_turned_off():
    assert EvaluateConfig.validate_all({}).bare
    assert vars(build_parser().parse_args(["evaluate", "--no-bare"]))["bare"] is False
    assert "bare" not in vars(build_parser().parse_args(["evaluate"]))  # a settings file may say it


def test_help_keeps_square_brackets_and_shows_defaults_of_zero(capsys):
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "[input=context group=page]" in shown
    assert "seed of the split (default: 0)" in shown


def test_ctrl_c_ends_a_command_without_a_traceback(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("loratune.commands.compare.run", interrupted)
    assert main(["compare"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_the_readme_is_finished_and_its_links_lead_somewhere():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "@@" not in readme
    links = re.findall(r"\]\(([^)#]+)\)", readme)
    assert len(links) > 5
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_json_keeps_each_letter_whatever_stdout_can_show(encoding):
    told = "naïve 日本 \u202e \U0001f600 € \udcff"
    code = f"""
import importlib
from types import SimpleNamespace
from loratune.cli.main import main
importlib.import_module = lambda name: SimpleNamespace(run=lambda settings: {{"told": {told!a}}})
main(["doctor", "--json"])
"""
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert json.loads(done.stdout.decode(encoding)) == {"told": told}
