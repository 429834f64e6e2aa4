"""Training gives the bits that were recorded: a change that is meant to change no arithmetic changes none.

The last bits of a sum depend on the processor and on torch, so on another machine than the one where they
were recorded the losses are compared instead, up to rounding. After a change that is meant to change bits:
python tests/training/test_recorded_bits.py
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from loratune.system.hardware import identify_processor
from support.small_models import GPT2_SHAPES, LLAMA_SHAPES, save_model
from support.training_runs import load_adapter_tensors, train, write_run_inputs

RECORDED = Path(__file__).with_name("recorded_bits.json")
SHAPES = {
    "llama": LLAMA_SHAPES["smollm2"],
    "qwen3": LLAMA_SHAPES["qwen3"],
    "gpt2": GPT2_SHAPES["cerebras-gpt"],
}
OPTIONS = {
    "fp32": ["--precision", "fp32"],
    "bf16": ["--precision", "bf16"],
    "dropout": ["--precision", "fp32", "--dropout", "0.1"],
    "low memory": ["--precision", "fp32", "--low-memory", "--micro-tokens", "300"],
}
RUNS = [(shape, options) for shape in SHAPES for options in OPTIONS]


def run(place: Path, shape: str, options: str) -> dict:
    """Train six steps in the working directory `place`; returns the adapter's hash and the losses."""
    name = f"{shape}-{options}".replace(" ", "-")
    if not (place / "data").exists():
        write_run_inputs(place)
    if not (place / shape).exists():
        save_model(place / shape, SHAPES[shape])
    how = [
        "--model",
        shape,
        "--steps",
        "6",
        "--validations",
        "2",
        "--rank",
        "4",
        "--run",
        name,
        "--out",
        name,
    ]
    assert train(*how, *OPTIONS[options]) == 0
    digest = hashlib.sha256()
    for key, matrix in sorted(load_adapter_tensors(place / name).items()):
        digest.update(key.encode() + matrix.numpy().tobytes())
    lines = (place / "runs" / name / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {"sha256": digest.hexdigest(), "losses": [row["loss"] for row in rows if "loss" in row]}


def machine() -> dict[str, str]:
    return {"processor": identify_processor("cpu"), "torch": torch.__version__}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("recorded")


@pytest.mark.parametrize(("shape", "options"), RUNS)
def test_training_gives_the_recorded_bits(place, monkeypatch, shape, options):
    monkeypatch.chdir(place)
    monkeypatch.setenv("LORATUNE_CACHE", str(place / "cache"))
    recorded = json.loads(RECORDED.read_text())
    then, now = recorded["runs"][f"{shape}, {options}"], run(place, shape, options)
    assert now["losses"] == pytest.approx(then["losses"], rel=1e-2 if options == "bf16" else 1e-4)
    if machine() != recorded["machine"]:
        pytest.skip("the losses agree; the bits were recorded with another processor or another torch")
    assert now == then


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["LORATUNE_CACHE"] = f"{folder}/cache"
        runs = {f"{shape}, {options}": run(Path(folder), shape, options) for shape, options in RUNS}
    RECORDED.write_text(json.dumps({"machine": machine(), "runs": runs}, indent=1) + "\n")
    print(f"{len(runs)} runs recorded in {RECORDED.name}", file=sys.stderr)
