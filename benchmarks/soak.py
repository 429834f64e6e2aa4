"""Does a long run stay as it was in its first minutes?

Trains in one process, stopped as by Ctrl-C every few minutes; then the newest checkpoint is evaluated (loss
and generation) and the run goes on with --resume, until its budget is used up. Every two seconds the
process's resident memory is noted. The table has a line for each stretch: the most memory that its training
and its evaluation held, what was left when both were over (answers differ in length, and an evaluation's
memory with them; what is left must not grow), its speed, and what lies in the run's folder.

    python benchmarks/soak.py --config finqa --budget 2h --stretch 8m

The run's own settings come after these two; `--out`, `--run` and the rest are those of `loratune train`.
"""

import argparse
import json
import os
import signal
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from loratune.commands import evaluate, train
from loratune.config.base import read_toml
from loratune.config.evaluate import EvaluateConfig
from loratune.config.recipes import find_settings_file
from loratune.config.shared import RUNS_FOLDER, parse_duration
from loratune.config.train import TrainConfig
from loratune.system.memory import release_finished_work, resident_memory

EVERY = 2.0  # seconds between two looks at the memory
ANSWERED = 32  # rows answered after each stretch
COLUMNS = {
    "step": "step",
    "speed": "tokens/s",
    "train_mb": "training MB",
    "evaluate_mb": "evaluating MB",
    "resting_mb": "resting MB",
    "open_files": "open files",
    "checkpoints": "checkpoints",
    "files": "files",
    "folder_mb": "folder MB",
}


class Watch(threading.Thread):
    """Notes the largest resident memory of each phase."""

    def __init__(self):
        super().__init__(daemon=True)
        self.phase, self.peaks = "", {}

    def run(self) -> None:
        while True:
            self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), resident_memory())
            time.sleep(EVERY)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config")
    parser.add_argument("--budget", type=parse_duration, required=True)
    parser.add_argument("--stretch", type=parse_duration, default=480.0)
    parser.add_argument("--run", default="soak")
    given = parser.parse_args()
    settings = TrainConfig.validate_all(
        {
            **(read_toml(find_settings_file(given.config)) if given.config else {}),
            "budget": given.budget,
            "run": given.run,
        }
    )
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell has it ignored
    watch, stretches, finished = Watch(), [], False
    watch.start()
    while not finished:
        number = len(stretches)
        finished = train_for(given.stretch, settings, number, watch)
        accuracy = answered(settings, number, watch)
        stretches.append(stretch(settings, number, watch.peaks) | accuracy)
        print(json.dumps(stretches[-1]), flush=True)
    show(stretches)


def train_for(seconds: float, settings: TrainConfig, number: int, watch: Watch) -> bool:
    """A stretch of the run, ended by a signal; whether the run is finished."""
    watch.phase = f"train {number}"
    ctrl_c = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    ctrl_c.start()
    try:
        asked = TrainConfig(run=settings.run, resume=True) if number else settings
        return train.run(asked)["finished"]
    finally:
        ctrl_c.cancel()
        release_finished_work()  # else what the allocator happens to keep would count as the next phase's


def answered(settings: TrainConfig, number: int, watch: Watch) -> dict:
    """The newest checkpoint on some of the validation rows."""
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
    with TemporaryDirectory() as nothing_known:
        evaluate.get_cache_folder = lambda: Path(
            nothing_known
        )  # or only the first stretch would compute the base's part
        measured = evaluate.run(asked)
    release_finished_work()
    return {
        name: measured["tuned"][name] for name in ("nll", "execution_accuracy") if name in measured["tuned"]
    }


def stretch(settings: TrainConfig, number: int, peaks: dict[str, int]) -> dict:
    rows = [json.loads(line) for line in (folder(settings) / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    files = [path for path in folder(settings).rglob("*") if path.is_file() and not path.is_symlink()]
    return {
        "stretch": number,
        "step": steps[-1]["step"],
        "tokens": steps[-1]["tokens"],
        "elapsed": steps[-1]["elapsed_seconds"],
        "stepping": steps[-1]["tokens"] / steps[-1]["tokens_per_second"],
        "train_mb": round(peaks[f"train {number}"] / 1e6, 1),
        "evaluate_mb": round(peaks[f"evaluate {number}"] / 1e6, 1),
        "resting_mb": round(resident_memory() / 1e6, 1),
        "threads": threading.active_count(),
        "open_files": len(os.listdir("/proc/self/fd")),
        "checkpoints": len(checkpoints(settings)),
        "files": len(files),
        "folder_mb": round(sum(path.stat().st_size for path in files) / 1e6, 1),
    }


def folder(settings: TrainConfig) -> Path:
    return RUNS_FOLDER / settings.run


def checkpoints(settings: TrainConfig) -> list[Path]:
    return sorted((folder(settings) / "checkpoints").glob("step-*"))


def show(stretches: list[dict]) -> None:
    """A table for RESULTS.md, and the change from the second stretch, when everything has been in use once,
    to the last.
    """
    print("| stretch | " + " | ".join(COLUMNS.values()) + " |\n" + "|---" * (1 + len(COLUMNS)) + "|")
    before = {"tokens": 0, "stepping": 0.0}
    for one in stretches:
        one["speed"] = (one["tokens"] - before["tokens"]) / max(one["stepping"] - before["stepping"], 1e-9)
        before = one
        print(f"| {one['stretch'] + 1} | " + " | ".join(f"{one[name]:,.0f}" for name in COLUMNS) + " |")
    if len(stretches) > 2:
        first, last = stretches[1], stretches[-2]  # the last one is short
        for name in ("train_mb", "evaluate_mb", "resting_mb", "speed"):
            change = last[name] / first[name] - 1
            print(
                f"{name}: {first[name]:,.0f} in the second stretch, {last[name]:,.0f} in the last whole one: "
                f"{change:+.1%}"
            )


if __name__ == "__main__":
    main()
