"""A disk that fills up at any write: one clear line, nothing half-written, and the way back once there is
room.

The disk is a real one, in memory, which the tests fill to the last byte; only root may make it.
"""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys

import pytest

from loratune.cli.main import main
from loratune.errors import FileError
from loratune.models import adapter as adapters
from loratune.system.atomic import write_all_atomically
from loratune.training import checkpoint, loop
from loratune.training.run_folder import RunFolder
from support.faults import RUN, SmallDisk, assert_refused, enter_copy, read_contents, start_process, watchers
from support.training_runs import are_same_tensors, load_adapter_tensors

ONE = [*RUN, "--run", "one", "--out", "tuned"]
# What `train` writes, each by a pattern of its own.
WRITTEN = (
    r"runs/\.one\.lock",
    r"\.tuned\.lock",
    r"settings\.toml",
    r"facts\.json",
    r"metrics\.jsonl",
    r"step-000000.*adapter_model",
    r"step-000000.*adapter_config",
    r"step-000000.*optimizer",
    r"step-000000.*state",
    r"step-000003.*adapter_model",
    r"loss\.png",
    r"\.tuned.*tmp/\.adapter_model",
    r"\.tuned.*tmp/tokenizer",
    r"\.tuned.*loratune\.json",
    r"\.tuned.*README",
    r"summary\.json",
)


def mount(path, *options: str) -> None:
    result = subprocess.run(
        ["mount", "-t", "tmpfs", *options, "tmpfs", str(path)], capture_output=True, text=True
    )
    if result.returncode:
        pytest.skip(f"no file system can be made here (needs root): {result.stderr.strip()}")


@pytest.fixture
def disk(template, cache, tmp_path, monkeypatch):
    """The working directory is on it."""
    path = tmp_path / "disk"
    path.mkdir()
    mount(path, "-o", "size=16m")
    disk = SmallDisk(path)
    for module in (adapters, checkpoint):  # these open their files in Rust, which Python does not hear of
        monkeypatch.setattr(module, "save_file", disk.watch_before(module.save_file))
    try:
        enter_copy(path, template, cache, monkeypatch)
        yield disk
    finally:
        watchers.remove(disk)
        monkeypatch.undo()
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def list_temporary_files(disk) -> list[str]:
    """Temporary files and locks that were left."""
    return [str(path) for path in disk.path.rglob(".*")]


def fill_and_go_on(disk, capsys, file: int | str) -> None:
    """Let the disk fill up at one write of a run, make room, and go on."""
    with disk.fill_before_opening(file):
        error = assert_refused(capsys, *ONE)
    assert "no room left on the disk" in error and list_temporary_files(disk) == []
    begun = (disk.path / "runs" / "one").exists()
    assert ("go on with: loratune train --run one --resume" in error) == begun
    assert main(["train", "--run", "one", "--resume"] if begun else ONE) == 0


@pytest.mark.parametrize("file", WRITTEN)
def test_training_resumes_after_a_full_disk(disk, whole, capsys, file):
    fill_and_go_on(disk, capsys, file)
    assert are_same_tensors(load_adapter_tensors(disk.path / "tuned"), whole)


@pytest.mark.slow
def test_training_resumes_after_a_disk_full_at_any_write(disk, whole, capsys):
    with disk.fill_before_opening(None):
        assert main(ONE) == 0
    for number, name in enumerate(list(disk.opened)):
        shutil.rmtree("runs")
        shutil.rmtree("tuned")
        fill_and_go_on(disk, capsys, number)
        assert are_same_tensors(load_adapter_tensors(disk.path / "tuned"), whole), name


def test_log_rows_wait_for_disk_space(disk, whole, capsys, monkeypatch):
    """The disk is full from the first step to the second: training goes on, and the log lacks nothing in the
    end.
    """
    original, original_row, filled = RunFolder.write_log, loop.build_log_row, []

    def write_log(run):
        steps = [json.loads(line) for line in run.pending_lines if '"loss"' in line]
        if steps and not filled:
            filled.append(disk.fill())
        elif len(filled) == 1 and len(steps) == 2:
            filled.append(disk.free())
        original(run)

    monkeypatch.setattr(RunFolder, "write_log", write_log)
    # Too long for what is left of the file's last page.
    monkeypatch.setattr(
        loop, "build_log_row", lambda *arguments: original_row(*arguments) | {"note": "x" * 10_000}
    )
    assert main(ONE) == 0
    assert len(filled) == 2
    assert capsys.readouterr().out.count("its log is kept in memory") == 1
    rows = RunFolder(disk.path / "runs" / "one").read_log()
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]
    assert are_same_tensors(load_adapter_tensors(disk.path / "tuned"), whole)


def test_partially_written_log_row_is_removed(disk):
    run = RunFolder(disk.path)
    run.append_log({"step": 1})
    disk.fill()
    run.append_log({"step": 2, "text": "x" * 10_000})  # more than the rest of the page that the first row has
    assert run.metrics.read_text() == '{"step": 1}\n'
    disk.free()
    run.append_log({"step": 3})
    assert [row["step"] for row in run.read_log()] == [1, 2, 3]


EVALUATE = [
    "evaluate",
    "--adapter",
    "adapter",
    "--generate",
    "2",
    "--max-new-tokens",
    "2",
    "--out",
    "measured.json",
]
COMPARE = ["compare", "--adapter", "adapter", "--max-new-tokens", "2", "--format", "both"]
PREPARE = ["prepare", "--data", "mine.jsonl", "--model", "base", "--val-fraction", "0.2"]


@pytest.mark.parametrize("words", [EVALUATE, COMPARE, PREPARE], ids=lambda words: words[0])
def test_full_disk_leaves_earlier_files_intact(disk, capsys, words):
    with disk.fill_before_opening(None):
        assert main(words) == 0
    before, count = read_contents(disk.path), len(disk.opened)
    assert count >= 1
    for number in range(count):
        with disk.fill_before_opening(number):
            assert "no room left on the disk" in assert_refused(capsys, *words)
        assert read_contents(disk.path) == before, disk.opened[number]
    assert main(words) == 0


@pytest.mark.parametrize(
    "words", [EVALUATE, COMPARE, PREPARE, [*ONE, "--out", "adapter"]], ids=lambda words: words[0]
)
def test_unwritable_folder_is_refused(disk, capsys, words):
    before = read_contents(disk.path)
    mount(disk.path, "-o", "remount,ro")
    assert "permission denied" in assert_refused(capsys, *words)
    mount(disk.path, "-o", "remount,rw")
    assert read_contents(disk.path) == before


def test_disk_that_turns_read_only_during_a_run(disk, whole, capsys, monkeypatch):
    original = loop.train_step

    def step(*arguments, **options):
        mount(disk.path, "-o", "remount,ro")
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", step)
        error = assert_refused(capsys, *ONE)
    mount(disk.path, "-o", "remount,rw")
    assert "the file system is read-only" in error and "--run one --resume" in error
    assert main(["train", "--run", "one", "--resume"]) == 0
    assert are_same_tensors(load_adapter_tensors(disk.path / "tuned"), whole)


def test_output_to_a_full_disk_is_dropped(disk, whole):
    """`loratune train > log.txt` where log.txt has no room: the run, which writes elsewhere, ends well."""
    disk.fill()
    with open("log.txt", "w") as log:
        command = [sys.executable, "-m", "loratune", *RUN, "--run", "one"]
        place = disk.path.parent / "elsewhere"
        shutil.copytree(disk.path / "base", place / "base")
        shutil.copytree(disk.path / "data", place / "data")
        assert subprocess.run(command, cwd=place, stdout=log, stderr=log).returncode == 0
    assert are_same_tensors(load_adapter_tensors(place / "model" / "gpt2_lora_finetuned"), whole)


@pytest.mark.parametrize("number", range(3))
def test_disk_that_fails_at_fsync_is_reported(tmp_path, monkeypatch, number):
    """As file systems that place their blocks late do: by then none of the files may have taken its place."""
    original, synced = os.fsync, []

    def fsync(file):
        synced.append(file)
        if len(synced) - 1 == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(file)

    paths = [tmp_path / name for name in "abc"]
    write_all_atomically(dict.fromkeys(paths, "old"))
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(FileError, match=f"{paths[number]}: no room left on the disk"):
        write_all_atomically(dict.fromkeys(paths, "new"))
    assert [path.read_text() for path in paths] == ["old"] * 3 and len(list(tmp_path.iterdir())) == 3


def test_file_size_limit_is_reported(place):
    """Like a full disk, and no root is needed for it."""
    limited = start_process(
        *PREPARE, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    )
    _, error = limited.communicate()
    assert limited.returncode == 2 and error.startswith(
        "error: data/train.jsonl: the file is larger than the system allows"
    )
    assert not list(place.glob("data/.*"))


def test_unusable_cache_is_ignored(disk, whole, monkeypatch):
    """It has no room for what was timed; later there are broken files in it."""
    monkeypatch.setenv("LORATUNE_CACHE", str(disk.path / "cache"))
    with disk.fill_before_opening(r"trial-.*json"):
        assert main([*ONE, "--dry-run"]) == 0
    assert not list(disk.path.glob("cache/trial*"))
    assert main([*ONE, "--dry-run"]) == 0
    (one, *others) = disk.path.glob("cache/trial*")
    for path in (one, *others):
        path.write_text("[]" if path == one else "{")
    assert main(ONE) == 0
    assert are_same_tensors(load_adapter_tensors(disk.path / "tuned"), whole)
