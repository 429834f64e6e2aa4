"""How long loratune needs for the held-out loss that TRL reaches in half an hour.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.time_to_loss --model smollm2-135m

Both train on the training part of the shipped Dolly and FinQA, shuffled, with rank 16 on all linear layers,
AdamW, gradients clipped at 1, the same peak learning rate and share of warm-up, each in a process of its own:

TRL         SFTTrainer + PEFT on prompt/completion, 8 rows a step in micro-batches of --batch rows (1 is its
            best where `peers` was run), in --precision; it stops after --minutes. Its learning rate decays
            linearly to 0 over that time
loratune    `loratune train --budget` with each of --shares of these minutes, all else by default

What comes before the first step (imports, tokenising, loratune's short measurement of the machine) is in
neither's time. loratune's budget pays for its own validations, TRL has none: that is to loratune's
disadvantage. In return loratune keeps the adapter of its best validation; so the loss is measured on the test
part, which neither has seen, by the same code: the mean over the response tokens of --held-out rows, drawn
evenly from both sources.
"""

import argparse
import json
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import TrainerCallback

from benchmarks import contestants
from benchmarks.generation import apart
from benchmarks.peers import make_base, say
from benchmarks.record import LOSS, MEMORY, Column, Row, add_record_option, parse_options, show_and_record
from loratune.commands import prepare
from loratune.config.prepare import PrepareConfig
from loratune.config.train import TrainConfig
from loratune.data.example import Example
from loratune.data.jsonl import read_records
from loratune.data.packing import input_length
from loratune.data.sample import draw_stratified_sample
from loratune.data.template import load_template
from loratune.data.tokenize import tokenize_records
from loratune.models.load import load_model
from loratune.models.resolve import resolve_model
from loratune.models.tokenizer import Tokenizer
from loratune.system.hardware import count_usable_cores
from loratune.system.memory import peak_memory_mb
from loratune.system.read import read_json
from loratune.training.schedule import StopRule, learning_rate_factor

DEFAULTS = TrainConfig()
COLUMNS = [
    Column(key="minutes", title="minutes"),
    Column(key="steps", title="steps"),
    Column(key="tokens", title="tokens"),
    Column(key="tokens_per_second", title="tokens/s"),
    MEMORY,
    LOSS,
]


def main(options: Namespace) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        options.base, options.data = apart(make_base, options.model, folder / "base"), folder / "data"
        apart(prepare.run, PrepareConfig(source="snapshot", model=options.base, out=options.data))
        rows = [measure(trl, options, folder / "trl", options.minutes)]
        for number, share in enumerate(options.shares):
            rows.append(measure(loratune, options, folder / f"loratune-{number}", options.minutes * share))
    show_and_record(
        options,
        title=f"Time to a loss: {options.model}",
        what=f"Dolly and FinQA, rank 16 on all linear layers, {options.held_out} held-out rows, peak "
        f"learning rate of TRL {options.rate:g}; one run each.",
        columns=COLUMNS,
        rows=rows,
        notes=describe_outcome(rows),
    )


def measure(train: Callable, options: Namespace, folder: Path, minutes: Fraction) -> Row:
    """Train for so many minutes, and return what came of it."""
    measured = apart(train, options, folder, float(60 * minutes))
    loss = apart(loss_of, options, folder)
    say(f"{train.__name__}: {measured}, loss {loss}")
    tool = f"TRL, batch {options.batch}" if train is trl else "loratune"
    return Row(
        name=f"{tool}, {measured['precision']}, {float(minutes):g} minutes",
        values={
            "minutes": float(minutes),
            "steps": measured["steps"],
            "tokens": measured["tokens"],
            "tokens_per_second": round(measured["tokens_per_second"], 1),
            "peak_memory_gb": round(measured["peak_memory_mb"] / 1000, 3),
            "loss": round(loss, 4),
        },
    )


def trl(options: Namespace, folder: Path, seconds: float) -> dict:
    torch.set_num_threads(count_usable_cores())
    torch.manual_seed(0)
    rows = encoded(options, "train")
    rows = [rows[number] for number in torch.randperm(len(rows)).tolist()]
    timed = Timed(seconds, options.rate)
    contestants.trl(rows, options, folder, timed)
    tokens = sum(map(input_length, rows[: timed.steps * contestants.STEP_ROWS]))
    return {
        "precision": options.precision,
        "steps": timed.steps,
        "tokens": tokens,
        "tokens_per_second": tokens / timed.elapsed,
        "peak_memory_mb": peak_memory_mb(),
    }


class Timed(TrainerCallback):
    """Stops one of the Trainers after so many seconds; its learning rate decays to 0 over them."""

    def __init__(self, seconds: float, rate: float):
        self.rule, self.rate = StopRule(seconds=seconds), rate
        self.steps, self.elapsed, self.started = 0, 0.0, 0.0

    @property
    def now(self) -> tuple[int, float, float]:
        return self.steps, self.elapsed, self.elapsed / max(self.steps, 1)

    def on_step_begin(self, *_, optimizer, **__):
        self.started = self.started or time.perf_counter()
        factor = learning_rate_factor(self.rule.compute_progress(*self.now), DEFAULTS.warmup, "linear")
        for group in optimizer.param_groups:
            group["lr"] = self.rate * factor

    def on_step_end(self, arguments, state, control, **_):
        self.steps, self.elapsed = state.global_step, time.perf_counter() - self.started
        control.should_training_stop = self.rule.is_over(*self.now)


def loratune(options: Namespace, folder: Path, seconds: float) -> dict:
    words = ["--model", options.base, "--data", options.data, "--out", folder, "--run", folder.name]
    command = [sys.executable, "-m", "loratune", "train", *words, "--budget", f"{seconds}s", "--json"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=folder.parent, check=True)
    return {
        "precision": read_json(folder / "loratune.json")["settings"]["precision"],
        **json.loads(result.stdout),
    }


def encoded(options: Namespace, part: str) -> list[Example]:
    records = read_records(options.data / f"{part}.jsonl")
    if part == "test":
        records = draw_stratified_sample(records, options.held_out, seed=0)
    return tokenize_records(
        records,
        load_template("instruction"),
        Tokenizer.load(Path(options.base)),
        max_tokens=DEFAULTS.max_tokens,
    )[0]


def loss_of(options: Namespace, adapter: Path) -> float:
    torch.set_num_threads(count_usable_cores())
    return contestants.held_out_loss(
        load_model(resolve_model(options.base)), encoded(options, "test"), adapter
    )


def describe_outcome(rows: list[Row]) -> str:
    theirs, *ours = rows
    enough = [row.name for row in ours if row.number(LOSS.key) <= theirs.number(LOSS.key)]
    return f"As low as TRL's loss: {'; '.join(enough) or 'none'}."


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m", help="or gpt2-shape, whose weights are random")
    parser.add_argument("--minutes", type=Fraction, default=Fraction(30), help="TRL's time")
    parser.add_argument("--shares", type=Fraction, nargs="+", default=[Fraction(1, 3), Fraction(1, 5)])
    parser.add_argument(
        "--batch", type=int, choices=(1, 2, 4, 8), default=1, help="rows in a micro-batch of TRL's"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="TRL's")
    parser.add_argument("--rate", type=float, default=DEFAULTS.learning_rate, help="TRL's peak learning rate")
    parser.add_argument("--held-out", type=int, default=400)
    add_record_option(parser)
    return parser


if __name__ == "__main__":
    main(parse_options(build_parser()))
