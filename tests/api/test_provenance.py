"""What files say of an adapter: only what belongs to it, and never a failure."""

import json
import shlex
from pathlib import Path

import pytest

from loratune.api.provenance import build_command_lines, read_training_log, read_versions
from loratune.cli.arguments import SETTINGS, build_parser
from loratune.config.base import format_flag
from loratune.config.compare import CompareConfig
from loratune.config.evaluate import EvaluateConfig
from loratune.config.prepare import PrepareConfig
from loratune.config.train import TrainConfig
from loratune.evaluation.result import Evaluation
from loratune.models.adapter import read_adapter_metadata
from loratune.system.atomic import write_json, write_text
from loratune.system.console import show_messages
from support.evaluations import evaluation, parse

TRAINED = TrainConfig(run="mine", steps=5, rank=4, model="base")
ROWS = [
    {"step": 0, "val_nll": 2.5},
    {"step": 1, "loss": 2.4, "tokens": 90, "lr": 0.1},
    {"step": 1, "val_nll": 2.3},
]
COUNTS = {"dolly": {"rows": 7, "inputs_cut": 1, "responses_cut": 0, "dropped": 2}}
ADAPTER = Path("adapter")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An adapter's own words about itself, and the run that made it, as training leaves them."""
    monkeypatch.chdir(tmp_path)
    show_messages(format_flag, SETTINGS)
    facts = {
        "base": {"name": "base", "fingerprint": "b"},
        "data": {"train": "t", "val": "v"},
        "versions": {"torch": "2"},
    }
    write_json(ADAPTER / "loratune.json", facts | {"settings": TRAINED.model_dump(mode="json")})
    run = Path("runs/mine")
    write_text(run / "settings.toml", TRAINED.to_toml())
    write_json(run / "facts.json", {"base": "b", "train.jsonl": "t", "val.jsonl": "v", "torch": "2"})
    write_text(run / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))
    write_json(run / "summary.json", {"run": "mine", "rows": COUNTS})
    return tmp_path


def test_the_run_that_made_the_adapter_is_found(place):
    rows, counts = read_training_log(read_adapter_metadata(ADAPTER))
    assert [(row.step, row.loss, row.val_nll) for row in rows] == [
        (0, None, 2.5),
        (1, 2.4, None),
        (1, None, 2.3),
    ]
    assert counts == COUNTS and read_versions(read_adapter_metadata(ADAPTER)) == {"torch": "2"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("settings.toml", TRAINED.model_copy(update={"rank": 8}).to_toml(), "another one than the adapter's"),
        (
            "facts.json",
            '{"base": "b", "train.jsonl": "other", "val.jsonl": "v"}',
            "another one than the adapter's",
        ),
        ("facts.json", "[]", "another one than the adapter's"),
        ("facts.json", "{", "facts.json, line 1: not valid JSON"),
        ("settings.toml", "rank = 'x'", "settings.toml: --rank"),
        ("metrics.jsonl", '{"step"}\n', "metrics.jsonl: cannot be read"),
        ("metrics.jsonl", '{"step": 1, "loss": "low"}\n', "metrics.jsonl: 0.loss"),
        (
            "metrics.jsonl",
            '{"step": 1, "loss": NaN}\n',
            "metrics.jsonl: 0.loss: input should be a finite number",
        ),
        ("summary.json", '{"rows": 5}', "summary.json: rows"),
    ],
)
def test_a_run_that_does_not_fit_is_left_out_and_said(place, capsys, name, content, said):
    write_text(place / "runs/mine" / name, content)
    assert read_training_log(read_adapter_metadata(ADAPTER)) == ([], {})
    told = " ".join(capsys.readouterr().out.split())
    assert "Left out of the report: " in told and said in told


@pytest.mark.parametrize("settings", [None, 5, {"run": "../mine"}, {"unknown": 1}, {"run": "elsewhere"}])
def test_an_adapter_without_a_run_is_no_problem(place, capsys, settings):
    facts = json.loads((place / "adapter/loratune.json").read_text())
    write_json(ADAPTER / "loratune.json", facts | {"settings": settings})
    assert read_training_log(read_adapter_metadata(ADAPTER)) == ([], {})
    (place / "adapter/loratune.json").unlink()
    assert (
        read_training_log(read_adapter_metadata(ADAPTER)) == ([], {})
        and read_versions(read_adapter_metadata(ADAPTER)) == {}
    )
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("train", TRAINED),
        (
            "train",
            TrainConfig(targets=["attention", "mlp.c_fc"], dry_run=True, budget="10m", out="a folder; rm"),
        ),
        ("compare", CompareConfig(adapter="it's", temperature=0.5, format="both", seed=3)),
        ("evaluate", EvaluateConfig(rows=10, data="dolly", facts="gold")),
        ("prepare", PrepareConfig(columns={"input": "a b", "output": "c"}, data=["x y.csv"])),
    ],
)
def test_a_command_line_gives_its_settings_again(name, settings):
    program, *words = shlex.split(settings.to_command_line(name))
    given = vars(build_parser().parse_args(words))
    assert program == "loratune" and given.pop("command") == name
    given.pop("json")
    assert type(settings).validate_all(given) == settings


def test_the_commands_that_lead_to_the_report(place):
    found = build_command_lines(
        CompareConfig(adapter=ADAPTER),
        read_adapter_metadata(ADAPTER),
        parse(Evaluation, evaluation("rows.jsonl")),
    )
    assert [sorted(command.split()) for command in found] == [
        sorted(command.split())  # in whatever order the options are
        for command in (
            "loratune train --model base --run mine --rank 4 --steps 5",
            "loratune evaluate --adapter adapter --max-new-tokens 12 --data rows.jsonl --facts gold --rows "
            "20 --generate 2",
            "loratune compare --adapter adapter",
        )
    ]


def test_the_commands_of_another_evaluation_file(place):
    """Without a bare base, and written elsewhere: the third command finds what the second one writes."""
    measured = {name: value for name, value in evaluation("rows.jsonl").items() if name != "base_bare"}
    found = build_command_lines(
        CompareConfig(adapter=ADAPTER, evaluation=Path("other.json")),
        read_adapter_metadata(ADAPTER),
        parse(Evaluation, measured),
    )
    assert {"--no-bare", "--out", "other.json"} <= set(found[1].split())
    assert found[2] == "loratune compare --adapter adapter --evaluation other.json"
