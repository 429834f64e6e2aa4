"""The worked examples of docs/architecture.md: each runs as it stands there."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from loratune.cli.arguments import COMMANDS
from loratune.cli.main import main
from loratune.data.example import Record
from loratune.evaluation.metrics import METRICS
from loratune.models.architectures import gpt2
from loratune.tasks.registry import SOURCES, TASKS, task_of
from loratune.training.objective import ResponseNll, target_nll
from loratune.training.validate import compute_validation_loss
from support.evaluating import make_place, measured, write_rows
from support.plain_lora import build_adapted_decoder, build_examples
from support.small_models import save_model

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"


def read_blocks(title: str, language: str) -> list[str]:
    """Return the blocks of code in one language under a heading."""
    section = PAGE.read_text(encoding="utf-8").split(f"### {title}\n", 1)[1].split("\n##", 1)[0]
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return [code for name, code in fenced if name == language]


def run_example(title: str) -> dict:
    """Run the Python under a heading, and return the entry that its table gets, by its key."""
    names: dict = {}
    for code in read_blocks(title, "python"):
        exec(code, names)
    [line] = read_blocks(title, "")
    return eval(f"{{{line}}}", names)


def test_source_prepares(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "base")
    [(name, source)] = run_example("A data source").items()
    monkeypatch.setitem(SOURCES, name, source)
    assert main(["prepare", "--model", "base", "--data", name, "--val-fraction", "0", "--dry-run"]) == 0
    assert "the shipped poems, 2 rows" in capsys.readouterr().out
    assert main(["prepare", "--model", "base", "--data", name, "--val-fraction", "0"]) == 0
    rows = (tmp_path / "data" / "train.jsonl").read_text().splitlines()
    assert {json.loads(row)["source"] for row in rows} == {name} and len(rows) == 2


def test_task_and_metric_are_evaluated(tmp_path, monkeypatch, capsys):
    make_place(tmp_path, monkeypatch)
    for name, metric in run_example("A metric").items():
        monkeypatch.setitem(METRICS, name, metric)
    for name, task in run_example("A task").items():
        monkeypatch.setitem(TASKS, name, task)
        for metric_name, metric in task.metrics.items():
            monkeypatch.setitem(METRICS, metric_name, metric)
    write_rows(
        tmp_path,
        [
            {"instruction": f"Rhyme {n}.", "input": "", "output": "a\nb\nc", "source": "poems"}
            for n in range(3)
        ],
    )
    found = measured(tmp_path)
    assert {"three_lines", "questions"} <= found["tuned"].keys() & found["difference"].keys()
    assert "three lines, % ↑" in capsys.readouterr().out
    record = Record("Rhyme.", "", "a\nb\nc", id="1", source="poems")
    assert task_of(record).score("a\nb\nc", record).scores == {"three_lines": 1.0}


def test_command_runs(tmp_path, monkeypatch, capsys):
    config_code, command_code = read_blocks("A command", "python")
    config, command = ModuleType("loratune.config.count"), ModuleType("loratune.commands.count")
    for module, code in ((config, config_code), (command, command_code)):
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(code, vars(module))
    [line] = read_blocks("A command", "")
    for name, config_class in eval(f"{{{line}}}", vars(config)).items():
        monkeypatch.setitem(COMMANDS, name, config_class)
    write_rows(tmp_path, [{"instruction": "a", "output": "b"}] * 3)
    assert main(["count", "--data", str(tmp_path / "data" / "test.jsonl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"rows": 3}
    assert main(["count", "--dat", "x"]) == 2
    assert "did you mean --data?" in capsys.readouterr().err


def test_objective_weighs_as_it_says():
    names: dict = {}
    [code] = read_blocks("An objective", "python")
    exec(code, names)
    objective, decoder = names["EarlyTokensFirst"](), build_adapted_decoder("gpt2")
    batch = objective.collate(build_examples())
    loss = compute_validation_loss(decoder, [batch], objective)
    with torch.no_grad():
        nll, position = target_nll(decoder, batch), batch.position_ids[batch.target_index]
    weights = torch.tensor([1 / (1 + int(number)) for number in position])
    assert loss == pytest.approx(float((weights * nll).sum() / weights.sum()), rel=1e-5)
    assert loss != pytest.approx(compute_validation_loss(decoder, [batch], ResponseNll()), rel=1e-3)


def test_length_of_the_example_architecture():
    lines = len(Path(gpt2.__file__).read_text(encoding="utf-8").splitlines())
    assert (
        f"`gpt2.py`](../src/loratune/models/architectures/gpt2.py) is the example: {lines} lines"
        in PAGE.read_text(encoding="utf-8")
    )
