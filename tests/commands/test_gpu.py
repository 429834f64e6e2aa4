"""The commands on a GPU: one that is pretended, one that cannot compute, and one that is gone."""

import json
from pathlib import Path

import pytest

from loratune.api.provenance import read_training_log
from loratune.cli.main import main
from loratune.config.base import read_toml
from loratune.config.shared import DEFAULT_ADAPTER
from loratune.models.adapter import read_adapter_metadata
from loratune.system.read import read_json
from support.simulated_gpu import simulate_gpu

NO_KERNEL = "CUDA error: no kernel image is available for execution on the device"
LONG_ROWS = ["--batch-tokens", "200", "--max-tokens", "300", "--threads", "1", "--dropout", "0.1"]
TRAIN = ["train", "--model", "base", "--run", "one", "--steps", "2", *LONG_ROWS]
RESUME = ["train", "--run", "one", "--resume"]


@pytest.fixture
def gpu(monkeypatch):
    with monkeypatch.context() as patch:
        simulate_gpu(patch)
        yield patch


def test_a_run_goes_on_whose_rows_may_be_longer_than_a_step(workplace, gpu):
    assert main(TRAIN) == 0
    kept = read_toml(Path("runs/one/settings.toml"))
    assert (kept["device"], kept["precision"], kept["micro_tokens"]) == ("cuda", "bf16", 300)
    assert main(RESUME) == 0
    rows, _ = read_training_log(read_adapter_metadata(DEFAULT_ADAPTER))
    assert [row.step for row in rows if row.loss] == [1, 2]


def test_a_run_goes_on_that_was_kept_with_too_few_micro_tokens(workplace, gpu):
    """As they were written once."""
    assert main(TRAIN) == 0
    for path in (
        Path("runs/one/settings.toml"),
        Path("runs/one/facts.json"),
        DEFAULT_ADAPTER / "loratune.json",
    ):
        text = path.read_text()
        changed = text.replace('"micro_tokens": 300', '"micro_tokens": 200').replace(
            "micro_tokens = 300", "micro_tokens = 200"
        )
        assert changed != text
        path.write_text(changed)
    assert len(read_training_log(read_adapter_metadata(DEFAULT_ADAPTER))[0]) > 0
    assert main(RESUME) == 0
    assert len(read_training_log(read_adapter_metadata(DEFAULT_ADAPTER))[0]) > 0


def test_a_run_goes_on_without_its_gpu_as_the_message_says(workplace, gpu, capsys):
    assert main(TRAIN) == 0
    gpu.undo()
    capsys.readouterr()
    assert main(RESUME) == 2
    told = capsys.readouterr().err
    assert "--device cuda: no CUDA device" in told and "leave the option out" not in told
    assert (remedy := "loratune train --run one --resume --device cpu --accept-changes") in told
    assert main([*remedy.split()[1:], "--steps", "3"]) == 0
    assert read_toml(Path("runs/one/settings.toml"))["device"] == "cpu"
    assert {"--device", "processor"} <= {
        one["name"] for one in read_json(Path("runs/one/facts.json"))["changes"]
    }
    assert main(RESUME) == 0  # accepted once and for all


def test_auto_says_why_it_does_not_take_a_gpu(workplace, monkeypatch, capsys):
    simulate_gpu(monkeypatch, fault=NO_KERNEL)
    assert main([*TRAIN, "--precision", "fp32", "--micro-tokens", "300", "--json"]) == 0
    printed = capsys.readouterr()
    assert f"warning: Abacus 3 cannot compute: {NO_KERNEL}" in " ".join(printed.err.split())
    assert (
        json.loads(printed.out)["finished"] and read_toml(Path("runs/one/settings.toml"))["device"] == "cpu"
    )
    assert (
        main(["compare", "--max-new-tokens", "2", "--prompts", "prompts.json"]) == 2
    )  # there is no such file
    Path("prompts.json").write_text('["Count to 3."]')
    assert main(["compare", "--max-new-tokens", "2", "--prompts", "prompts.json"]) == 0
    assert "Abacus 3 cannot compute" in " ".join(capsys.readouterr().out.split())


def test_a_gpu_that_is_asked_for_and_cannot_compute_is_refused(workplace, monkeypatch, capsys):
    simulate_gpu(monkeypatch, fault=NO_KERNEL)
    assert main([*TRAIN, "--device", "cuda"]) == 2
    told = capsys.readouterr().err
    assert (
        f"--device cuda: Abacus 3 cannot compute: {NO_KERNEL}; leave the option out to compute on the CPU"
        in told
    )
