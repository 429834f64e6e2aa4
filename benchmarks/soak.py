"""Does a long run stay as it was in its first minutes?

    python -m benchmarks.soak --config finqa --budget 2h --stretch 8m

One process trains, is stopped as by Ctrl-C every few minutes, evaluates its newest checkpoint (loss and
answers) and resumes, until its budget is used up. Its resident memory is read every two seconds. The table
has a line for each stretch: the most memory that its training and its evaluation held, what was left when
both were over (answers differ in length, and an evaluation's memory with them; what is left must not grow),
its speed, and what lies in the run's folder.
"""

import argparse
import json
import os
import signal
import threading
import time
from argparse import Namespace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.record import Column, Row, add_record_option, parse_options, show_and_record
from loratune.commands import evaluate, train
from loratune.config.base import read_toml
from loratune.config.evaluate import EvaluateConfig
from loratune.config.recipes import find_settings_file
from loratune.config.shared import RUNS_FOLDER, parse_duration
from loratune.config.train import TrainConfig
from loratune.system.cache import RESULTS, get_cache_folder
from loratune.system.memory import release_finished_work, resident_memory

EVERY = 2.0  # seconds between two looks at the memory
ANSWERED = 32  # rows answered after each stretch
COLUMNS = [
    Column(key="step", title="step"),
    Column(key="speed", title="tokens/s"),
    Column(key="train_mb", title="training", unit=" MB"),
    Column(key="evaluate_mb", title="evaluating", unit=" MB"),
    Column(key="resting_mb", title="resting", unit=" MB"),
    Column(key="open_files", title="open files"),
    Column(key="checkpoints", title="checkpoints"),
    Column(key="files", title="files"),
    Column(key="folder_mb", title="folder", unit=" MB"),
]
Stretch = dict[str, float]  # by column, and what it is computed from


class Watch(threading.Thread):
    """Keeps the largest resident memory of each phase."""

    def __init__(self):
        super().__init__(daemon=True)
        self.phase = ""
        self.peaks: dict[str, int] = {}

    def run(self) -> None:
        while True:
            self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), resident_memory())
            time.sleep(EVERY)


def main(options: Namespace) -> None:
    settings = TrainConfig.validate_all(
        {
            **(read_toml(find_settings_file(options.config)) if options.config else {}),
            "budget": options.budget,
            "run": options.run,
        }
    )
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell has it ignored
    with TemporaryDirectory() as cache:
        os.environ["LORATUNE_CACHE"] = cache
        # Unpacks the model and measures the machine, or the first stretch's signal could come before its run.
        train.run(settings.model_copy(update={"dry_run": True}))
        stretches = run_stretches(settings, options.stretch)
    show_and_record(
        options,
        title="One process for hours: training, signals, evaluations, resumes",
        what=f"A stretch ends with a signal after {options.stretch / 60:g} minutes; then the newest "
        f"checkpoint is evaluated on {ANSWERED} rows, all of them answered, and the run resumes in the same "
        "process.",
        columns=COLUMNS,
        rows=[
            Row(name=f"stretch {number}", values={column.key: one[column.key] for column in COLUMNS})
            for number, one in enumerate(stretches, start=1)
        ],
        notes=describe_change(stretches),
    )


def run_stretches(settings: TrainConfig, seconds: float) -> list[Stretch]:
    """Train, evaluate and resume until the run's budget is used up."""
    watch, finished = Watch(), False
    stretches: list[Stretch] = []
    watch.start()
    while not finished:
        number = len(stretches)
        finished = train_for(seconds, settings, number, watch)
        evaluate_newest_checkpoint(settings, number, watch)
        stretches.append(measure_stretch(settings, number, watch.peaks))
        print(json.dumps(stretches[-1]), flush=True)
    fill_in_speeds(stretches)
    return stretches


def train_for(seconds: float, settings: TrainConfig, number: int, watch: Watch) -> bool:
    """Train for a stretch, ended by a signal; return whether the run is finished."""
    watch.phase = f"train {number}"
    ctrl_c = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    ctrl_c.start()
    try:
        asked = TrainConfig(run=settings.run, resume=True) if number else settings
        return train.run(asked)["finished"]
    finally:
        ctrl_c.cancel()
        release_finished_work()  # else what the allocator happens to keep would count as the next phase's


def evaluate_newest_checkpoint(settings: TrainConfig, number: int, watch: Watch) -> None:
    """Evaluate it on some of the validation rows."""
    watch.phase = f"evaluate {number}"
    asked = EvaluateConfig(
        model=settings.model,
        adapter=[checkpoints(settings)[-1]],
        data=str(settings.data / "val.jsonl"),
        rows=ANSWERED,
        generate=ANSWERED,
        bare=False,
        out=folder(settings) / "evaluation.json",
    )
    evaluate.run(asked)
    for known in get_cache_folder().glob(RESULTS.pattern):
        known.unlink()  # or only the first stretch would compute the base's part
    release_finished_work()


def measure_stretch(settings: TrainConfig, number: int, peaks: dict[str, int]) -> Stretch:
    rows = [json.loads(line) for line in (folder(settings) / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    files = [path for path in folder(settings).rglob("*") if path.is_file() and not path.is_symlink()]
    return {
        "step": steps[-1]["step"],
        "tokens": steps[-1]["tokens"],
        "stepping": steps[-1]["tokens"] / steps[-1]["tokens_per_second"],
        "train_mb": round(peaks[f"train {number}"] / 1e6, 1),
        "evaluate_mb": round(peaks[f"evaluate {number}"] / 1e6, 1),
        "resting_mb": round(resident_memory() / 1e6, 1),
        "open_files": len(os.listdir("/proc/self/fd")),
        "checkpoints": len(checkpoints(settings)),
        "files": len(files),
        "folder_mb": round(sum(path.stat().st_size for path in files) / 1e6, 1),
    }


def folder(settings: TrainConfig) -> Path:
    assert settings.run  # --run has a default
    return RUNS_FOLDER / settings.run


def checkpoints(settings: TrainConfig) -> list[Path]:
    return sorted((folder(settings) / "checkpoints").glob("step-*"))


def fill_in_speeds(stretches: list[Stretch]) -> None:
    """Compute the speed of each stretch's own steps from the run's totals."""
    tokens, seconds = 0.0, 0.0
    for one in stretches:
        one["speed"] = round((one["tokens"] - tokens) / max(one["stepping"] - seconds, 1e-9), 1)
        tokens, seconds = one["tokens"], one["stepping"]


def describe_change(stretches: list[Stretch]) -> str:
    """Compare the last whole stretch with the second, when everything has been in use once."""
    if len(stretches) < 3:
        return ""
    first, last = stretches[1], stretches[-2]  # the very last one is short
    changes = (
        f"{column.title} {last[column.key] / first[column.key] - 1:+.1%}"
        for column in COLUMNS
        if column.key in ("speed", "train_mb", "evaluate_mb", "resting_mb")
    )
    return f"From the second stretch to the last whole one: {', '.join(changes)}."


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="settings of `loratune train`")
    parser.add_argument("--budget", type=parse_duration, required=True)
    parser.add_argument("--stretch", type=parse_duration, default=480.0)
    parser.add_argument("--run", default="soak")
    add_record_option(parser)
    return parser


if __name__ == "__main__":
    main(parse_options(build_parser()))
