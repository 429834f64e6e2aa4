"""How long loratune needs for the held-out loss that TRL reaches in half an hour.

    .venv/bin/pip install -r benchmarks/requirements.txt
    .venv/bin/python benchmarks/time_to_loss.py --model smollm2-135m

Both train on the training part of the shipped Dolly and FinQA, shuffled, with rank 16 on all linear layers,
AdamW, gradients clipped at 1, the same highest learning rate and share of warm-up, each in a process of its
own:

trl         SFTTrainer + PEFT on prompt/completion, 8 rows a step, --batch of them at once (1 is its best
  where peers.py was tried), in --precision; it stops after --minutes. Its learning rate ends at 0 when the
  time does: it follows the share of the time that is gone, as loratune's does, linearly. loratune
  `loratune train --budget` with each of --shares of these minutes, all else by default

What comes before the first step (imports, tokens, loratune's short test of the machine) is in neither's time.
loratune's budget pays for its own validations, TRL has none: that is to loratune's disadvantage. In return
loratune keeps the adapter of its best validation; so the loss is measured on the test part, which neither has
seen, by the same code: the mean over the response tokens of --held-out rows, drawn evenly from both sources.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import contestants
import torch
from peers import make_base, say
from transformers import TrainerCallback

from generation import apart
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


def main(options) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        options.base, options.data = apart(make_base, options.model, folder / "base"), folder / "data"
        apart(prepare.run, PrepareConfig(source="snapshot", model=options.base, out=options.data))
        results = {f"TRL, batch {options.batch}": measured(trl, options, folder / "trl", options.minutes)}
        for number, share in enumerate(options.shares):
            ours = measured(loratune, options, folder / f"loratune-{number}", options.minutes * share)
            results[f"loratune, {share} of the time"] = ours
    show(results, options)


def measured(train: Callable, options, folder: Path, minutes: Fraction) -> dict:
    result = apart(train, options, folder, float(60 * minutes))
    result |= {"minutes": float(minutes), "loss": apart(loss_of, options, folder)}
    say(f"{train.__name__}: {result}")
    return result


def trl(options, folder: Path, seconds: float) -> dict:
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
    """Lets one of the Trainers train for so many seconds, with a learning rate that ends when they do."""

    def __init__(self, seconds: float, rate: float):
        self.rule, self.rate = StopRule(seconds=seconds), rate
        self.steps, self.elapsed, self.started = 0, 0.0, None

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


def loratune(options, folder: Path, seconds: float) -> dict:
    words = ["--model", options.base, "--data", options.data, "--out", folder, "--run", folder.name]
    command = [sys.executable, "-m", "loratune", "train", *words, "--budget", f"{seconds}s", "--json"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=folder.parent, check=True)
    return {
        "precision": read_json(folder / "loratune.json")["settings"]["precision"],
        **json.loads(result.stdout),
    }


def encoded(options, part: str) -> list[Example]:
    records = read_records(options.data / f"{part}.jsonl")
    if part == "test":
        records = draw_stratified_sample(records, options.held_out, seed=0)
    return tokenize_records(
        records,
        load_template("instruction"),
        Tokenizer.load(Path(options.base)),
        max_tokens=DEFAULTS.max_tokens,
    )[0]


def loss_of(options, adapter: Path) -> float:
    torch.set_num_threads(count_usable_cores())
    return contestants.held_out_loss(
        load_model(resolve_model(options.base)), encoded(options, "test"), adapter
    )


def show(results: dict[str, dict], options) -> None:
    print(
        f"\n{options.model}, highest learning rate of TRL {options.rate:g}, {options.held_out} held-out "
        "rows\n"
    )
    print(
        "| | minutes | precision | steps | tokens | tokens/s | peak memory | held-out loss "
        "|\n|---|---|---|---|---|---|---|---|"
    )
    for name, one in results.items():
        counts = f"{one['steps']:,} | {one['tokens']:,} | {one['tokens_per_second']:.0f}"
        sizes = f"{one['peak_memory_mb'] / 1000:.2f} GB | {one['loss']:.3f}"
        print(f"| {name} | {one['minutes']:.3g} | {one['precision']} | {counts} | {sizes} |")
    theirs, *ours = (one["loss"] for one in results.values())
    enough = [share for share, loss in zip(options.shares, ours, strict=True) if loss <= theirs]
    print(
        f"\nloratune has TRL's loss after {min(enough)} of the time."
        if enough
        else "\nNo share is enough for TRL's loss."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m", help="or gpt2-shape, whose weights are random")
    parser.add_argument("--minutes", type=Fraction, default=Fraction(30), help="TRL's time")
    parser.add_argument("--shares", type=Fraction, nargs="+", default=[Fraction(1, 3), Fraction(1, 5)])
    parser.add_argument(
        "--batch", type=int, choices=(1, 2, 4, 8), default=1, help="rows that TRL computes at once"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="TRL's")
    parser.add_argument(
        "--rate", type=float, default=DEFAULTS.learning_rate, help="TRL's highest learning rate"
    )
    parser.add_argument("--held-out", type=int, default=400)
    main(parser.parse_args())
