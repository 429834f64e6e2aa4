"""The Python API: what it promises, and every example of its page, run on a small model."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

import loratune
from loratune.cli.main import main
from loratune.config import options
from loratune.config.compare import CompareConfig
from loratune.config.evaluate import EvaluateConfig
from loratune.config.prepare import PrepareConfig
from loratune.config.train import TrainConfig
from support.evaluations import comparison
from support.small_models import LLAMA_SHAPES, save_model

PAGE = Path(loratune.__file__).parents[2] / "docs" / "python-api.md"
# What the functions take by another way: as arguments of their own, or not at all.
OWN = {
    options.PrepareOptions: (PrepareConfig, {"data", "out", "dry_run"}),
    options.TrainOptions: (TrainConfig, {"model", "data", "repeat", "dry_run"}),
    options.EvaluateOptions: (
        EvaluateConfig,
        {"adapter", "model", "template", "threads", "device", "data", "out", "dry_run"},
    ),
    options.CompareOptions: (
        CompareConfig,
        {
            *("adapter", "model", "template", "threads", "device", "prompts", "evaluation"),
            *("out", "format", "dry_run"),
        },
    ),
}


@pytest.mark.parametrize("own", OWN, ids=lambda own: own.__name__)
def test_options_are_those_of_the_command(own):
    config, others = OWN[own]
    assert get_type_hints(own).keys() == config.model_fields.keys() - others


def test_import_takes_no_torch():
    program = (
        "import sys, loratune; dir(loratune); sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_every_public_name_is_there():
    assert len(set(loratune.__all__)) == len(loratune.__all__)
    for name in loratune.__all__:
        assert getattr(loratune, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'tune'"):
        loratune.tune  # noqa: B018


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a CSV of questions and a small base."""
    place = tmp_path_factory.mktemp("api")
    questions = [f"How much does a {thing} cost?" for thing in "abcdefghijklmnopqrstuvwxyz"]
    lines = ["question,answer", *(f"{question},It costs {n} euros." for n, question in enumerate(questions))]
    (place / "faq.csv").write_text("\n".join(lines) + "\n")
    config = copy.deepcopy(LLAMA_SHAPES["smollm2"])
    config.max_position_embeddings = 1024  # as many as the default of `max_tokens`
    save_model(place / "base", config)
    return place


def examples() -> list[str]:
    """The Python blocks of the page, with the small base in place of the bundled model."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [
        block.replace('"smollm2-135m"', '"base"')
        .replace('["dolly", "finqa"], out="data"', '"faq.csv", out="data", model="base"')
        .replace('out="faq", columns', 'out="faq", model="base", columns')
        .replace('budget="5m"', 'steps=2, out="first", run="first"')
        for block in blocks
    ]


def test_the_examples_of_the_page_run(place, monkeypatch, capfd):
    monkeypatch.chdir(place)
    monkeypatch.setenv("LORATUNE_CACHE", str(place / "cache"))
    assert len(examples()) >= 10
    names: dict = {}
    for example in examples():
        exec(compile(example, str(PAGE), "exec"), names)
    assert (place / "comparison.html").stat().st_size > 10_000
    assert (place / "by_hand" / "adapter_model.safetensors").exists()
    assert capfd.readouterr().err == ""


def test_what_python_returns_is_what_the_command_writes(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("LORATUNE_CACHE", str(place / "cache"))
    loratune.prepare("faq.csv", out="data", model="base")
    arguments = {"steps": 3, "validations": 2, "rank": 4}
    by_python = loratune.train("base", "data", out="python", run="python", **arguments)
    words = ["--steps", "3", "--validations", "2", "--rank", "4"]
    assert main(["train", "--model", "base", "--out", "cli", "--run", "cli", *words]) == 0
    name = "adapter_model.safetensors"
    assert (place / "python" / name).read_bytes() == (place / "cli" / name).read_bytes()
    summary = json.loads((place / "runs" / "python" / "summary.json").read_text())
    assert summary == by_python.to_json()

    model = loratune.load(by_python.adapter, threads=1)
    evaluation = loratune.evaluate(model, "data/test.jsonl", generate=2, max_new_tokens=8)
    options = ["--adapter", "python", "--generate", "2", "--max-new-tokens", "8", "--threads", "1"]
    assert main(["evaluate", *options]) == 0
    assert json.loads((place / "evaluation.json").read_text()) == json.loads(json.dumps(evaluation.to_json()))

    prompts = ["How much?", "Why?"]
    (place / "test.json").write_text(json.dumps(prompts))
    compared = loratune.compare(model, prompts, max_new_tokens=8)
    assert main(["compare", "--adapter", "python", "--max-new-tokens", "8", "--threads", "1"]) == 0
    assert json.loads((place / "model_comparison.json").read_text()) == compared.rows
    assert model.generate(prompts, max_new_tokens=8) == [row["fine_tuned"] for row in compared.rows]
    with model.base():
        assert model.generate(prompts, max_new_tokens=8) == [row["regular"] for row in compared.rows]


@pytest.mark.parametrize(
    ("call", "setting", "message"),
    [
        (lambda: loratune.train("base", rank=0), "rank", "greater than or equal to 1"),
        (lambda: loratune.train("base", ranks=8), "ranks", "did you mean `rank`?"),
        (lambda: loratune.train("base", steps=1, epochs=1), "", "contradict each other"),
        (lambda: loratune.prepare("nowhere.csv"), "", "nowhere.csv"),
        (lambda: loratune.load("nowhere"), "adapter", "there is no such folder"),
        (lambda: loratune.load("nowhere", device="gpu"), "adapter", "there is no such folder"),
    ],
)
def test_bad_input_is_refused_by_name(place, monkeypatch, call, setting, message):
    monkeypatch.chdir(place)
    with pytest.raises(loratune.UserError, match=re.escape(message)) as refused:
        call()
    assert refused.value.setting == setting and "--" not in str(refused.value)


def test_a_report_needs_a_known_ending(tmp_path):
    for ending in ("html", "md", "json"):
        assert loratune.write_report(comparison(), tmp_path / f"report.{ending}").stat().st_size > 0
    with pytest.raises(loratune.UserError, match=r"must end with \.html, \.md or \.json"):
        loratune.write_report(comparison(), tmp_path / "report.pdf")
