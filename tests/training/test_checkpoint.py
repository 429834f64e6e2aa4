"""Checkpoints restore bit for bit, and damaged ones are never used silently."""

import json
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loratune.errors import UserError
from loratune.models.adapter import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, get_adapter_weights
from loratune.models.lora import add_lora
from loratune.training.checkpoint import (
    CHECKSUM_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    TrainingState,
    find_damage,
)
from loratune.training.run_folder import CHECKPOINTS_TO_KEEP, RunFolder, load_best_weights
from loratune.training.step import adamw
from support.small_models import LLAMA_SHAPES, build_reference, convert_to_decoder, randomise_lora

FILES = (ADAPTER_WEIGHTS_FILE, ADAPTER_CONFIG_FILE, OPTIMIZER_FILE, STATE_FILE, CHECKSUM_FILE)
STEPS = range(10, 60, 10)


def new_decoder():
    decoder = convert_to_decoder(build_reference(LLAMA_SHAPES["smollm2"]))
    add_lora(decoder, rank=2, alpha=4, dropout=0.0, targets=["q_proj"])
    return decoder


@pytest.fixture(scope="module")
def decoder():
    return new_decoder()


@pytest.fixture(scope="module")
def written(decoder, tmp_path_factory) -> RunFolder:
    """A run of 50 steps, of which each tenth was measured; the losses are 5, 4, 3 and so on."""
    run = RunFolder(tmp_path_factory.mktemp("runs") / "one")
    run.create("steps = 50\n", {"settings": {}})
    optimizer = adamw(decoder, 0.0)
    for number, step in enumerate(STEPS):
        fill(run, decoder, optimizer, step, nll=5.0 - number, best=True)
    return run


def fill(run: RunFolder, decoder, optimizer, step: int, nll: float, best: bool) -> None:
    """Ten steps up to `step`, a measurement and a checkpoint, each with an adapter and moments of its own."""
    randomise_lora(decoder, seed=step)
    for parameter in (one for group in optimizer.param_groups for one in group["params"]):
        generator = torch.Generator().manual_seed(step)
        moments = {
            kind: torch.rand(parameter.shape, generator=generator) for kind in ("exp_avg", "exp_avg_sq")
        }
        optimizer.state[parameter] = {"step": torch.tensor(float(step)), **moments}
    for one in range(step - 9, step + 1):
        run.append_log({"step": one, "loss": 1.0})
    run.append_log({"step": step, "val_nll": nll})
    state = TrainingState(
        step=step, validations=step // 10, base_nll=9.0, best_nll=nll, best_step=step, validated_step=step
    )
    run.save(decoder, optimizer, state, "base", best)


@pytest.fixture
def run(written, tmp_path) -> RunFolder:
    return RunFolder(shutil.copytree(written.folder, tmp_path / "one", symlinks=True))


def restore(run: RunFolder) -> tuple[TrainingState, dict, dict]:
    """The state, the adapter and the moments of a new process."""
    decoder = new_decoder()
    optimizer = adamw(decoder, 0.0)
    state = run.restore(decoder, optimizer)
    return state, get_adapter_weights(decoder), optimizer.state


def build_adapter_of_step(step: int) -> dict:
    decoder = new_decoder()
    randomise_lora(decoder, seed=step)
    return get_adapter_weights(decoder)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def list_checkpoint_names(run: RunFolder) -> list[str]:
    return sorted(path.name for path in (run.folder / "checkpoints").iterdir())


def read_logged_steps(run: RunFolder) -> list[int]:
    return [row["step"] for row in run.read_log() if "loss" in row]


def test_checkpoint_restores_bit_for_bit(run):
    state, weights, moments = restore(run)
    assert (state.step, state.best_step, state.best_nll) == (50, 50, 1.0)
    assert same(weights, build_adapter_of_step(50))
    first = next(iter(moments.values()))
    assert first["step"] == 50 and first["exp_avg"].equal(
        torch.rand(first["exp_avg"].shape, generator=seed_generator(50))
    )


def seed_generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_only_the_newest_checkpoints_are_kept(run):
    assert (
        list_checkpoint_names(run) == ["step-000040", "step-000050"]
        and len(list_checkpoint_names(run)) == CHECKPOINTS_TO_KEEP
    )
    assert run.find_best() == run.checkpoint_path(50).resolve()


def test_checkpoint_of_a_step_is_written_once(run, decoder):
    """Ctrl-C right after a validation: what is there is whole, and to replace it would leave a moment without
    it.
    """
    before = {path: path.stat().st_mtime_ns for path in run.checkpoint_path(50).iterdir()}
    run.save(decoder, adamw(decoder, 0.0), TrainingState(step=50), "base", best=False)
    assert {path: path.stat().st_mtime_ns for path in run.checkpoint_path(50).iterdir()} == before


def test_best_checkpoint_is_kept(decoder, tmp_path):
    run = RunFolder(tmp_path / "one")
    run.create("", {})
    optimizer = adamw(decoder, 0.0)
    for step in STEPS:
        fill(run, decoder, optimizer, step, nll=float(step), best=step == 10)
    assert list_checkpoint_names(run) == ["step-000010", "step-000040", "step-000050"]


def test_checkpoints_beyond_a_million_steps_are_in_order(tmp_path):
    run = RunFolder(tmp_path)
    for step in (999_999, 1_000_000, 5):
        run.checkpoint_path(step).mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-000007 (copy)").mkdir()
    assert run.list_checkpoints() == [run.checkpoint_path(step) for step in (5, 999_999, 1_000_000)]


def test_checksums_agree_with_sha256sum(run):
    subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", CHECKSUM_FILE],
        cwd=run.checkpoint_path(50),
        check=True,
    )


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_changed_byte_or_truncation_is_detected(written, name, data):
    path = written.checkpoint_path(50) / name
    before = path.read_bytes()
    place = data.draw(st.integers(0, len(before) - 1))
    flipped = bytes([before[place] ^ data.draw(st.integers(1, 255))])
    for broken in (before[:place] + flipped + before[place + 1 :], before[:place], before + b"\0"):
        try:
            path.write_bytes(broken)
            assert find_damage(written.checkpoint_path(50))
        finally:
            path.write_bytes(before)
    assert find_damage(written.checkpoint_path(50)) is None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["flipped", "empty", "missing"])
def test_damaged_checkpoint_is_reported_and_the_previous_one_used(run, capsys, name, how):
    path = run.checkpoint_path(50) / name
    content = path.read_bytes()
    path.write_bytes(b"" if how == "empty" else content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    if how == "missing":
        path.unlink()
    state, weights, _ = restore(run)
    output = capsys.readouterr().out
    assert (
        "step-000050: damaged: " in output
        and (name in output or name == CHECKSUM_FILE)
        and "goes on from step-000040" in output
    )
    assert (state.step, state.best_step, state.best_nll) == (40, 40, 2.0)
    assert same(weights, build_adapter_of_step(40)) and same(
        load_best_weights(run), build_adapter_of_step(40)
    )
    assert list_checkpoint_names(run) == ["damaged-step-000050", "step-000040"]
    assert read_logged_steps(run) == list(range(1, 41))
    restore(run)
    assert "damaged" not in capsys.readouterr().out  # said once


def test_lost_best_checkpoint_is_reported_and_replaced(decoder, tmp_path, capsys):
    run = RunFolder(tmp_path / "one")
    run.create("", {})
    optimizer = adamw(decoder, 0.0)
    for step, nll in zip(STEPS, (1.0, 4.0, 3.0, 2.5, 2.8), strict=True):
        fill(run, decoder, optimizer, step, nll, best=step == 10)
        # Only the first was ever the best.
        rewrite(run, step, best_step=10, best_nll=1.0)
    (run.checkpoint_path(10) / ADAPTER_WEIGHTS_FILE).write_bytes(b"")
    state, weights, _ = restore(run)
    output = " ".join(capsys.readouterr().out.split())
    assert "step-000010: the best checkpoint so far is lost; step-000040 takes its place" in output
    assert (state.step, state.best_step, state.best_nll, state.best_validation) == (50, 40, 2.5, 5)
    assert same(weights, build_adapter_of_step(50)) and same(
        load_best_weights(run), build_adapter_of_step(40)
    )


def rewrite(run: RunFolder, step: int, **values) -> None:
    """Another state in a checkpoint, whose checksums are made to agree."""
    from loratune.training import checkpoint

    path = run.checkpoint_path(step) / STATE_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    (run.checkpoint_path(step) / CHECKSUM_FILE).write_text(
        checkpoint.compute_checksums(run.checkpoint_path(step))
    )


def test_next_validation_is_the_best_if_no_validated_checkpoint_is_left(run):
    """Ctrl-C at step 50 left a checkpoint that was never measured; the others were lost."""
    run.metrics.write_text(
        "".join(json.dumps(row) + "\n" for row in run.read_log() if row != {"step": 50, "val_nll": 1.0})
    )
    rewrite(run, 50, best_step=20, best_nll=4.0, validated_step=20)
    shutil.rmtree(run.checkpoint_path(40))
    for _ in range(2):
        state, _, _ = restore(run)
        assert state.best_nll == math.inf and state.validated_step == -1 and state.step == 50


def test_validation_after_the_checkpoint_is_repeated(run):
    """A run that was stopped at a step, resumed to end there, and killed after its last measurement."""
    rewrite(run, 50, best_step=40, best_nll=2.0, validated_step=40)
    state, _, _ = restore(run)
    assert [row["step"] for row in run.read_log() if "val_nll" in row] == [10, 20, 30, 40]
    assert read_logged_steps(run) == list(range(1, 51)) and (state.best_step, run.find_best()) == (
        40,
        run.checkpoint_path(40).resolve(),
    )


def test_only_damaged_checkpoints_are_an_error_not_a_new_run(run):
    for step in (40, 50):
        (run.checkpoint_path(step) / STATE_FILE).write_bytes(b"{}")
    with pytest.raises(UserError, match="no whole checkpoint") as error:
        restore(run)
    assert all(f"step-{step:06d}: damaged: state.json" in str(error.value) for step in (40, 50))
    assert list_checkpoint_names(run) == ["step-000040", "step-000050"] and len(run.read_log()) == 55


def test_logged_steps_without_a_checkpoint_are_an_error(run):
    shutil.rmtree(run.folder / "checkpoints")
    with pytest.raises(UserError, match="no whole checkpoint"):
        restore(run)


def test_run_killed_before_its_first_checkpoint_starts_over(tmp_path):
    run = RunFolder(tmp_path / "one")
    run.create("", {})
    run.append_log({"step": 0, "val_nll": 3.0})
    state, weights, _ = restore(run)
    assert (
        state == TrainingState()
        and run.read_log() == []
        and same(weights, get_adapter_weights(new_decoder()))
    )


def test_outdated_best_link_is_repaired(run):
    (run.folder / "best").unlink()
    (run.folder / "best").symlink_to("checkpoints/step-000040")
    restore(run)
    assert same(load_best_weights(run), build_adapter_of_step(50))


def test_damaged_best_checkpoint_never_becomes_the_adapter(run):
    (run.checkpoint_path(50) / ADAPTER_CONFIG_FILE).write_text("{}")
    with pytest.raises(UserError, match=r"adapter_config\.json does not agree with SHA256SUMS"):
        load_best_weights(run)


def test_leftovers_of_a_killed_process_are_removed(run):
    for name in (
        ".summary.json.123.tmp",
        "checkpoints/.step-000060.123.tmp/state.json",
        "checkpoints/.step-000030.9.tmp/x",
    ):
        path = run.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    (run.folder / ".best.tmp").symlink_to("checkpoints/step-000040")
    restore(run)
    assert not [path for path in run.folder.rglob("*") if path.name.endswith(".tmp")]
    assert list_checkpoint_names(run) == ["step-000040", "step-000050"]


@given(
    cut=st.integers(1, 400),
    garbage=st.sampled_from([b"", b"\0" * 64, b"\n\0\n", b'{"step": 99, "loss"', b"\xff\n", b"5\n", b"{}\n"]),
)
@settings(max_examples=30, deadline=None)
def test_log_with_a_torn_end_has_each_step_once(written, tmp_path_factory, cut, garbage):
    run = RunFolder(shutil.copytree(written.folder, tmp_path_factory.mktemp("torn") / "one", symlinks=True))
    for step in range(51, 70):
        run.append_log({"step": step, "loss": 1.0})
    log = run.metrics.read_bytes()
    run.metrics.write_bytes(log[: len(log) - cut] + garbage)
    restore(run)
    assert read_logged_steps(run) == list(range(1, 51))


def test_log_with_missing_steps_is_reported(run, capsys):
    run.metrics.write_text(run.metrics.read_text().replace('{"step": 7, "loss": 1.0}\n', ""))
    assert restore(run)[0].step == 50
    assert "1 of the 50 steps so far are missing here" in " ".join(capsys.readouterr().out.split())


def test_run_folder_is_created_whole_or_not_at_all(tmp_path, monkeypatch):
    from loratune.training import run_folder

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_folder, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        RunFolder(tmp_path / "one").create("steps = 1\n", {})
    assert list(tmp_path.iterdir()) == []


def test_unfinished_run_folder_is_not_the_newest(tmp_path):
    from loratune.training.run_folder import find_newest_run

    for name in ("old", ".new.77.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "settings.toml").write_text("")
    assert find_newest_run(Path(tmp_path)).name == "old"
