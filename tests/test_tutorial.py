"""The tutorial's commands run as they stand there, with fewer steps and on fewer cores' time."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from loratune.cli.main import main

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"


def list_commands() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


@pytest.mark.slow
def test_commands_run_on_the_bundled_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORATUNE_CACHE", str(tmp_path / "cache"))
    shutil.copy(PAGE.parent / "tutorial" / "faq.csv", tmp_path)
    commands = list_commands()
    assert [command.split()[1] for command in commands if command.startswith("loratune")] == [
        *("prepare", "preview", "train", "evaluate", "compare")
    ]
    for command in commands:
        if command.startswith("echo"):
            text, file = re.fullmatch(r"echo '(.*)' > (\S+)", command).groups()
            (tmp_path / file).write_text(text)
            continue
        words = shlex.split(command)[1:]
        if words[0] == "train":
            words[words.index("--epochs")] = "--steps"
        assert main(words) == 0, command
    said = capsys.readouterr().out
    assert "rows in train.jsonl  │    49" in said and "12 improved" in said
    assert (tmp_path / "model_comparison.html").exists()
