"""The tutorial: its commands run as they stand on the page, and print what it shows."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from loratune.cli.main import main

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
EXACT = ("prepare", "preview")  # what the others print depends on the machine


def list_commands() -> list[tuple[str, list[str]]]:
    """Return each command of the page with the output shown below it."""
    commands: list[tuple[str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                commands.append((line[2:], []))
            else:
                commands[-1][1].append(line)
    return commands


def run_command(command: str) -> None:
    """Run a command of the page here; the shell's only one is `echo '...' > FILE`."""
    if written := re.fullmatch(r"echo '(.*)' > (\S+)", command):
        Path(written[2]).write_text(written[1], encoding="utf-8")
        return
    program, *words = shlex.split(command)
    assert program == "loratune"
    assert main(words) == 0, command


@pytest.mark.slow
def test_commands_run_as_they_stand(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORATUNE_CACHE", str(tmp_path / "cache"))
    shutil.copy(PAGE.parent / "tutorial" / "faq.csv", tmp_path)
    commands = list_commands()
    names = [command.split()[1] for command, _ in commands if command.startswith("loratune")]
    assert names == ["prepare", "preview", "train", "evaluate", "compare"]
    for command, shown in commands:
        run_command(command)
        printed = capsys.readouterr().out
        if command.split()[1] in EXACT:
            assert shown
            assert [line for line in shown if line not in printed] == []

    evaluation = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluation["rows"] == evaluation["improved"] == 12
    assert evaluation["tuned"]["nll"] < 0.5 < 3 < evaluation["base"]["nll"]
    comparison = json.loads((tmp_path / "model_comparison.json").read_text(encoding="utf-8"))
    answers = {row["prompt"]: row["fine_tuned"] for row in comparison}
    assert "9:30" in answers["What time do you close on Fridays?"]
    assert "Marta Quill" in answers["Who is the librarian?"]
    assert (tmp_path / "model_comparison.html").exists()


def test_the_file_is_as_the_page_says():
    rows = (PAGE.parent / "tutorial" / "faq.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + 96
    assert "\n".join(rows[:3]) in PAGE.read_text(encoding="utf-8")
