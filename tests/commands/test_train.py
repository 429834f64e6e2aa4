"""`loratune train` as a user meets it, on a model of a few thousand numbers."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from loratune.cli.main import main
from loratune.models.tokenizer import Tokenizer
from loratune.training import setup
from loratune.training.autotune import Measurement
from loratune.training.setup import defaults
from loratune.training.setup.inputs import read_preparation
from support.small_models import GPT2_SHAPES, save_model
from support.training_runs import ROWS, TRAIN, are_same_tensors, assert_refused, load_adapter_tensors, train


def test_writes_everything_that_others_rely_on(workplace, capsys):
    prepared = {"settings": {"fact_tokens": 200, "finqa_target": "program", "seed": 0}}
    (workplace / "data" / "prepare_report.json").write_text(json.dumps(prepared))
    assert train("--steps", "12", "--run", "one", "--out", "adapter", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    out, run = workplace / "adapter", workplace / "runs" / "one"
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "loratune.json",
        "README.md",
    } <= set(os.listdir(out))
    assert {"settings.toml", "metrics.jsonl", "summary.json", "loss.png", "checkpoints", "best"} <= set(
        os.listdir(run)
    )
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 13))
    assert {
        "step",
        "loss",
        "lr",
        "grad_norm",
        "tokens",
        "tokens_per_second",
        "peak_memory_mb",
        "elapsed_seconds",
    } <= steps[0].keys()
    validations = [row["val_nll"] for row in rows if "val_nll" in row]
    assert min(validations) == printed["best_val_nll"] < printed["base_val_nll"] == validations[0]
    assert json.loads((run / "summary.json").read_text()) == printed
    assert are_same_tensors(load_adapter_tensors(out), load_adapter_tensors(run / "best"))
    facts = json.loads((out / "loratune.json").read_text())
    assert facts["base"]["name"] == "base"
    assert facts["template"]
    assert facts["prepared"] == {"fact_tokens": 200, "finqa_target": "program"}


@pytest.mark.parametrize("report", [None, "{", "[]", '{"settings": {}}', '{"settings": []}'])
def test_data_without_a_usable_report_says_nothing_of_how_it_was_prepared(tmp_path, report):
    if report is not None:
        (tmp_path / "prepare_report.json").write_text(report)
    assert read_preparation(tmp_path) == {}


def test_the_same_run_twice_gives_the_same_adapter(workplace):
    for name in ("one", "two"):
        assert train("--steps", "8", "--dropout", "0.2", "--run", name, "--out", name) == 0
    assert are_same_tensors(load_adapter_tensors(workplace / "one"), load_adapter_tensors(workplace / "two"))


def test_a_row_without_a_wanted_response_is_never_trained_on_or_validated(workplace):
    """The adapter and the validation are, to the bit, those without such rows."""
    assert train("--steps", "4", "--run", "one", "--out", "one") == 0
    for name in ("train", "val"):
        path = workplace / "data" / f"{name}.jsonl"
        row = {
            "instruction": "How much?",
            "input": "",
            "output": "0.5",
            "meta": {"no_target": True},
            "source": "count",
        }
        path.write_text(json.dumps(row) + "\n" + path.read_text())
    assert train("--steps", "4", "--run", "two", "--out", "two") == 0
    assert are_same_tensors(load_adapter_tensors(workplace / "one"), load_adapter_tensors(workplace / "two"))
    summaries = [
        json.loads((workplace / "runs" / run / "summary.json").read_text()) for run in ("one", "two")
    ]
    assert summaries[0]["best_val_nll"] == summaries[1]["best_val_nll"]


def test_repeated_trainings_are_those_of_one_seed_after_the_other(workplace, capsys):
    words = ["--steps", "4", "--val-rows", "2"]
    assert train(*words, "--run", "r", "--out", "adapters/r", "--seed", "5", "--repeat", "2", "--json") == 0
    printed = capsys.readouterr()
    runs = json.loads(printed.out)["runs"]
    assert [run["adapter"] for run in runs] == ["adapters/r-seed5", "adapters/r-seed6"]
    assert (
        runs[0]["base_val_nll"] == runs[1]["base_val_nll"]
    )  # of the same rows: else the losses would not compare
    one, other = (run["best_val_nll"] for run in runs)
    assert f"validation loss {(one + other) / 2:.4f}±{abs(one - other) / 2**0.5:.4f}" in printed.err
    for seed in (5, 6):
        assert train(*words, "--run", f"alone{seed}", "--out", f"alone{seed}", "--seed", str(seed)) == 0
        assert are_same_tensors(
            load_adapter_tensors(workplace / f"alone{seed}"),
            load_adapter_tensors(workplace / "adapters" / f"r-seed{seed}"),
        )
    assert not are_same_tensors(
        load_adapter_tensors(workplace / "alone5"), load_adapter_tensors(workplace / "alone6")
    )


def test_a_repetition_is_not_resumed_as_one(workplace, capsys):
    assert train("--resume", "--run", "r", "--repeat", "2") == 2
    assert "--resume and --repeat contradict each other" in capsys.readouterr().err


def test_epochs_and_budget_and_early_stop(workplace, capsys):
    assert train("--epochs", "2", "--run", "epochs", "--json") == 0
    by_epochs = json.loads(capsys.readouterr().out)
    assert train("--budget", "2s", "--run", "budget", "--json") == 0
    by_budget = json.loads(capsys.readouterr().out)
    assert by_epochs["finished"] and by_budget["finished"]
    assert 0.5 < by_budget["elapsed_seconds"] < 20
    lrs = [
        json.loads(line).get("lr")
        for line in (workplace / "runs/budget/metrics.jsonl").read_text().splitlines()
    ]
    lrs = [lr for lr in lrs if lr is not None]
    assert lrs[-1] < 0.1 * max(lrs)
    # A rate at which nothing is learned improves on no validation after the first.
    assert (
        train("--steps", "500", "--patience", "2", "--learning-rate", "1e-12", "--run", "patience", "--json")
        == 0
    )
    assert json.loads(capsys.readouterr().out)["steps"] < 500


def test_interrupted_and_resumed_equals_uninterrupted(workplace, monkeypatch):
    assert train("--steps", "10", "--dropout", "0.1", "--run", "whole", "--out", "whole") == 0
    interrupt_after(4, monkeypatch)
    assert train("--steps", "10", "--dropout", "0.1", "--run", "parts", "--out", "parts") == 1
    assert not (workplace / "parts").exists()
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    assert main(["train", "--run", "parts", "--resume"]) == 0
    assert are_same_tensors(
        load_adapter_tensors(workplace / "whole"), load_adapter_tensors(workplace / "parts")
    )
    first, second = (
        [json.loads(line) for line in (workplace / f"runs/{name}/metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    )
    assert [row["loss"] for row in first if "loss" in row] == [row["loss"] for row in second if "loss" in row]


def test_between_validations_a_checkpoint_is_saved_every_ten_minutes(workplace, monkeypatch):
    """By a clock that each step moves on by 100 seconds."""
    from loratune.training import loop

    clock, saved = [0.0], []
    step, save = loop.train_step, loop.RunFolder.save

    def slow_step(*arguments, **options):
        clock[0] += 100.0
        return step(*arguments, **options)

    def noted(run, decoder, optimizer, state, base, best):
        saved.append(state.step)
        save(run, decoder, optimizer, state, base, best)

    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(loop, "train_step", slow_step)
    monkeypatch.setattr(loop.RunFolder, "save", noted)
    assert train("--steps", "20", "--validations", "2", "--run", "one") == 0
    assert saved == [0, 6, 11, 17, 20]
    rows = [json.loads(line) for line in (workplace / "runs/one/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "val_nll" in row] == [0, 11, 20]


def interrupt_after(steps: int, monkeypatch) -> None:
    from loratune.training import loop

    original, taken = loop.train_step, []

    def counting(*arguments, **options):
        taken.append(1)
        if len(taken) == steps:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **options)

    monkeypatch.setattr(loop, "train_step", counting)


def test_the_best_adapter_is_kept_not_the_last(workplace, capsys, monkeypatch):
    """The losses are made up: where real ones begin to rise, if they do, is another step on each kind of
    processor.
    """
    from loratune.training import loop

    losses = iter([3.0, 2.0, 1.0, 1.5, 2.5])
    monkeypatch.setattr(loop, "compute_validation_loss", lambda *_: next(losses))
    assert train("--steps", "8", "--validations", "4", "--run", "wild", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    run = workplace / "runs" / "wild"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    by_step = {row["step"]: row["val_nll"] for row in rows if "val_nll" in row}
    assert list(by_step.values()) == [3.0, 2.0, 1.0, 1.5, 2.5]
    assert by_step[summary["best_step"]] == 1.0
    kept, newest = (
        load_adapter_tensors(workplace / "model/gpt2_lora_finetuned"),
        load_adapter_tensors(run / "checkpoints" / "step-000008"),
    )
    assert are_same_tensors(kept, load_adapter_tensors(run / "best")) and not are_same_tensors(kept, newest)


def test_a_step_is_validated_once(workplace):
    assert train("--steps", "10", "--run", "one") == 0
    assert main(["train", "--run", "one", "--resume"]) == 0
    rows = [json.loads(line) for line in (workplace / "runs/one/metrics.jsonl").read_text().splitlines()]
    validated = [row["step"] for row in rows if "val_nll" in row]
    assert validated == sorted(set(validated)) and validated[-1] == 10


def test_a_validation_loss_that_is_no_number_stops_the_run(workplace, capsys):
    assert "the validation loss is nan" in assert_refused(
        capsys, "--steps", "1", "--learning-rate", "1e36", "--warmup", "0"
    )
    assert list((workplace / "model").iterdir()) == []


def test_no_room_left_for_the_adapter_leaves_the_old_one(workplace, capsys, monkeypatch):
    assert train("--steps", "2", "--run", "one") == 0
    before = {path.name: path.read_bytes() for path in (workplace / "model/gpt2_lora_finetuned").iterdir()}
    monkeypatch.setattr(Tokenizer, "save", full_disk)
    assert "no room left on the disk" in assert_refused(capsys, "--steps", "4", "--run", "two")
    assert {
        path.name: path.read_bytes() for path in (workplace / "model/gpt2_lora_finetuned").iterdir()
    } == before
    assert sorted(path.name for path in (workplace / "model").iterdir()) == ["gpt2_lora_finetuned"]


def full_disk(*_):
    raise Exception("No space left on device (os error 28)")  # as tokenizers raises it


def test_an_adapter_that_could_not_be_saved_is_saved_elsewhere_on_resume(workplace, capsys, monkeypatch):
    with monkeypatch.context() as context:
        context.setattr(Tokenizer, "save", full_disk)
        assert_refused(capsys, "--steps", "4", "--run", "one")
    assert main(["train", "--run", "one", "--resume", "--out", "elsewhere"]) == 0
    assert are_same_tensors(
        load_adapter_tensors(workplace / "elsewhere"),
        load_adapter_tensors(workplace / "runs" / "one" / "best"),
    )


def test_ctrl_c_in_a_terminal_saves_and_says_how_to_go_on(workplace):
    command = [sys.executable, "-m", "loratune", *TRAIN, "--steps", "100000", "--run", "long"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = workplace / "runs" / "long" / "metrics.jsonl"
    while (not metrics.is_file() or metrics.read_text().count("\n") < 3) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    told, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in errors
    assert "Go on with: loratune train --run long --resume" in told
    assert list((workplace / "runs" / "long" / "checkpoints").glob("step-*"))


def test_the_run_goes_on_when_its_reader_has_gone(workplace):
    command = " ".join([sys.executable, "-m", "loratune", *TRAIN, "--steps", "5", "--run", "one"])
    subprocess.run(f"{command} | head -1", shell=True, check=True, capture_output=True)
    assert json.loads((workplace / "runs" / "one" / "summary.json").read_text())["finished"]


def test_the_model_card_tells_what_was_done(workplace):
    assert train("--steps", "2", "--out", "adapter") == 0
    card = (workplace / "adapter" / "README.md").read_text()
    assert "Measured on 4 held-out rows" in card
    assert "cc-by-sa" not in card.split("---")[1]


def test_settings_file_and_its_mistakes(workplace, capsys):
    (workplace / "good.toml").write_text('steps = 2\nrank = 3\nrun = "from-file"\n')
    assert train("--config", "good.toml") == 0
    assert (
        load_adapter_tensors(workplace / "model/gpt2_lora_finetuned")[
            "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
        ].shape[0]
        == 3
    )
    (workplace / "budget.toml").write_text('budget = "1h"\n', encoding="utf-8-sig")
    assert train("--config", "budget.toml", "--steps", "2") == 0  # a stop rule given here replaces the file's
    (workplace / "bad.toml").write_text("rnak = 3\nsteps = 'x'\n")
    told = assert_refused(capsys, "--config", "bad.toml")
    assert "did you mean --rank?" in told and "--steps" in told
    (workplace / "broken.toml").write_text("rank = = 3\n")
    assert "line 1" in assert_refused(capsys, "--config", "broken.toml")


def test_a_resumed_run_keeps_its_settings_and_its_data(workplace, capsys, monkeypatch):
    interrupt_after(3, monkeypatch)
    assert train("--steps", "10", "--run", "one") == 1
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    assert "--rank: 16 when the run began, 4 now" in assert_refused(
        capsys, "--run", "one", "--resume", "--rank", "4", "--steps", "10"
    )
    with open(workplace / "data" / "train.jsonl", "a") as file:
        file.write(json.dumps(ROWS[0]) + "\n")
    assert "train.jsonl: " in assert_refused(capsys, "--run", "one", "--resume", "--steps", "10")
    assert "exists; go on with it by" in assert_refused(capsys, "--run", "one", "--steps", "10")


def test_dry_run_writes_nothing_and_says_what_to_expect(workplace, capsys):
    before = sorted(workplace.rglob("*"))
    assert train("--dry-run", "--steps", "30", "--json") == 0
    assert sorted(workplace.rglob("*")) == before
    expected = json.loads(capsys.readouterr().out)["expected"]
    assert expected["steps"] == 30
    assert expected["seconds"] > 0 < expected["tokens_per_second"] and expected["peak_memory_mb"] > 100


def test_low_memory_gives_the_same_adapter(workplace):
    assert train("--steps", "4", "--run", "usual", "--out", "usual") == 0
    assert train("--steps", "4", "--run", "low", "--out", "low", "--low-memory") == 0
    assert are_same_tensors(
        load_adapter_tensors(workplace / "usual"), load_adapter_tensors(workplace / "low")
    )


def test_micro_batches_change_neither_the_steps_nor_their_rates(workplace):
    logged = []
    for name, micro in (("whole", "900"), ("cut", "300")):
        assert (
            train(
                "--steps", "6", "--batch-tokens", "900", "--micro-tokens", micro, "--run", name, "--out", name
            )
            == 0
        )
        lines = (workplace / "runs" / name / "metrics.jsonl").read_text().splitlines()
        logged.append([row for row in map(json.loads, lines) if "loss" in row])
    for whole, cut in zip(*logged, strict=True):
        assert (whole["step"], whole["lr"], whole["tokens"]) == (cut["step"], cut["lr"], cut["tokens"])
        assert whole["loss"] == pytest.approx(cut["loss"], rel=1e-4)
        assert whole["grad_norm"] == pytest.approx(cut["grad_norm"], rel=1e-2)


def test_an_adapter_that_learned_nothing_is_warned_of(workplace, capsys):
    nothing = [
        "--steps",
        "2",
        "--schedule",
        "constant",
        "--warmup",
        "0",
        "--clip",
        "100",
        "--learning-rate",
        "30",
    ]
    assert train(*nothing, "--run", "none", "--out", "none") == 0
    assert "the adapter changes nothing" in " ".join(capsys.readouterr().out.split())
    assert not any(
        matrix.any() for name, matrix in load_adapter_tensors(workplace / "none").items() if "lora_B" in name
    )
    assert train("--steps", "12", "--run", "some", "--out", "some") == 0
    assert "the adapter changes nothing" not in " ".join(capsys.readouterr().out.split())


def test_the_choices_of_the_machine_are_written_down(workplace):
    assert main(["train", "--model", "base", "--max-tokens", "300", "--steps", "4", "--run", "one"]) == 0
    kept = (workplace / "runs" / "one" / "settings.toml").read_text()
    assert 'precision = "fp32"' in kept or 'precision = "bf16"' in kept
    assert "\nmicro_tokens = 1024\n" in kept and "\nbatch_tokens = 1024\n" in kept


def test_a_run_of_a_few_rows_takes_small_steps_which_a_resumed_one_keeps(workplace):
    options = [
        "--model",
        "base",
        "--max-tokens",
        "300",
        "--precision",
        "fp32",
        "--run",
        "one",
        "--out",
        "one",
    ]
    assert main(["train", *options, "--epochs", "1"]) == 0
    kept = (workplace / "runs" / "one" / "settings.toml").read_text()
    assert "\nbatch_tokens = 512\n" in kept
    assert main(["train", "--run", "one", "--resume"]) == 0
    assert (workplace / "runs" / "one" / "settings.toml").read_text() == kept


def test_how_long_a_run_is_the_whole_model_says_and_not_a_few_layers(workplace, monkeypatch, capsys):
    a_trial = Measurement("fp32", 1024, 1e-9, 1e-9, 1e9, 0)
    monkeypatch.setattr(defaults, "run_autotune", lambda *_, **__: a_trial)
    monkeypatch.setattr(setup, "measure_all_layers", lambda *_, **__: replace(a_trial, train_seconds=1.0))
    options = ["--model", "base", "--max-tokens", "300", "--budget", "30m", "--dry-run", "--json"]
    assert main(["train", *options]) == 0
    assert json.loads(capsys.readouterr().out)["batch_tokens"] == 512
    assert main(["train", *options, "--batch-tokens", "2048"]) == 0
    assert json.loads(capsys.readouterr().out)["batch_tokens"] == 2048


def test_a_short_budget_on_a_slow_machine_is_not_spent_on_validations(workplace, monkeypatch, capsys):
    (workplace / "data" / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:12]))
    slow = Measurement("fp32", 1024, 1e-3, 1e-3, 1e9, 0)
    monkeypatch.setattr(defaults, "run_autotune", lambda *_, **__: slow)
    monkeypatch.setattr(setup, "measure_all_layers", lambda *_, **__: slow)
    options = [
        "--model",
        "base",
        "--max-tokens",
        "300",
        "--precision",
        "fp32",
        "--run",
        "one",
        "--out",
        "one",
    ]
    assert main(["train", *options, "--budget", "2s"]) == 0
    kept = (workplace / "runs" / "one" / "settings.toml").read_text()
    assert "Validation: 8 rows instead of 64" in capsys.readouterr().out
    assert "\nval_rows = 8\n" in kept
    assert "Measured on 8 held-out rows" in (workplace / "one" / "README.md").read_text()
    for asked_again in ([], ["--val-rows", "64"]):
        assert main(["train", "--run", "one", "--resume", *asked_again]) == 0
        assert (workplace / "runs" / "one" / "settings.toml").read_text() == kept


def test_a_row_longer_than_a_step_is_a_step(workplace):
    assert train("--epochs", "1", "--batch-tokens", "64", "--run", "one", "--out", "one") == 0
    summary = json.loads((workplace / "runs" / "one" / "summary.json").read_text())
    assert train("--epochs", "1", "--batch-tokens", "900", "--run", "two", "--out", "two") == 0
    assert (
        summary["tokens"] == json.loads((workplace / "runs" / "two" / "summary.json").read_text())["tokens"]
    )
    assert summary["steps"] > 4


def test_gpt2_architecture_trains_too(workplace):
    save_model(workplace / "small-gpt2", GPT2_SHAPES["cerebras-gpt"])
    assert train("--model", "small-gpt2", "--steps", "3", "--targets", "attention", "mlp.c_fc") == 0
    names = set(load_adapter_tensors(workplace / "model/gpt2_lora_finetuned"))
    assert any("attn.c_attn" in name for name in names) and not any("mlp.c_proj" in name for name in names)
