"""loratune against TRL and against a plain Trainer: real tokens/s, peak memory, and the loss that the same
rows lead to.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.peers --model smollm2-135m

`--model gpt2-shape` has 124M random weights in GPT-2's shape. All tools train the same rows of the shipped
Dolly and FinQA in the same order, with rank 16 on all linear layers, AdamW, a constant learning rate, and in
fp32 unless --precision says otherwise. A process of its own runs each, in turn, and the median of the rounds
counts:

loratune    packed, about 1,024 tokens a step, as in a run of ordinary length; once more with `--low-memory`;
            and once in bf16 where this processor is much faster with it
TRL         SFTTrainer + PEFT on prompt/completion, 8 rows a step; its batch size is the fastest of --sizes
Trainer     transformers' Trainer + PEFT, each row padded to 512 tokens, 8 rows a step: the usual tutorial

A real token is one of a row's own, counted once; padding is none. The held-out loss of each adapter is
measured by the same code, on the same rows. A run's first step is left out of its speed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.record import (
    LOSS,
    MEMORY,
    ROOT,
    SPEED,
    Column,
    Row,
    add_record_option,
    parse_options,
    show_and_record,
)

Measured = dict[str, float]  # by name: tokens_per_second, peak_memory_gb, loss
ROUNDS = Column(key="rounds", title="in each round")
AGAINST_TRL = Column(key="against_trl", title="against TRL", unit="x", decimals=2)
AGAINST_TRAINER = Column(key="against_trainer", title="against the padded Trainer", unit="x", decimals=2)
SHARE_OF_MEMORY = Column(key="memory_share", title="of TRL's", unit=" %")
COLUMNS = [SPEED, ROUNDS, AGAINST_TRL, AGAINST_TRAINER, MEMORY, SHARE_OF_MEMORY, LOSS]
TRAINER = "Trainer, padded to 512, batch 8"


def main(options: Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(options.model, Path(folder))
        batch = options.sizes[0] if len(options.sizes) == 1 else find_best_batch(base, options)
        trl = f"TRL, batch {batch}"
        entries: dict[str, Sequence[str]] = {
            "loratune": ("loratune",),
            "loratune, `--low-memory`": ("loratune", "--low-memory"),
            trl: ("trl", "--batch", str(batch)),
            TRAINER: ("trainer", "--batch", "8"),
        }
        if options.precision == "fp32" and bf16_pays():
            entries = {"loratune, bf16": ("loratune", "--precision", "bf16"), **entries}
        runs: dict[str, list[Measured]] = {name: [] for name in entries}
        for _ in range(options.rounds):
            for name, words in entries.items():
                runs[name].append(run(words, base, options))
                say(f"{name}: {runs[name][-1]}")
    weights = " (random weights)" if options.model == "gpt2-shape" else ""
    show_and_record(
        options,
        title=f"Training against other tools: {options.model}{weights}",
        what=f"Real Dolly and FinQA rows ({options.rows}), rank 16 on all linear layers, {options.precision} "
        f"unless said otherwise; median of {count(options.rounds, 'round')} in turn.",
        columns=COLUMNS,
        rows=build_rows(runs, trl),
        notes="Of random weights, the losses only show that all learn alike." if weights else "",
    )


def build_rows(runs: dict[str, list[Measured]], trl: str) -> list[Row]:
    medians = {name: median_of(measured) for name, measured in runs.items()}
    rows = []
    for name, values in medians.items():
        speed = values["tokens_per_second"]
        values |= {
            "against_trl": speed / medians[trl]["tokens_per_second"],
            "against_trainer": speed / medians[TRAINER]["tokens_per_second"],
            "memory_share": 100 * values["peak_memory_gb"] / medians[trl]["peak_memory_gb"],
        }
        rounds = [one["tokens_per_second"] for one in runs[name]]
        rows.append(Row(name=name, values={**round_values(values), "rounds": rounds}))
    return rows


def median_of(runs: list[Measured]) -> Measured:
    """Return the median of each number."""
    return {name: median(run[name] for run in runs) for name in runs[0]}


def round_values(values: Measured) -> Measured:
    return {name: round(value, 4) for name, value in values.items()}


def count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def find_best_batch(base: str, options: Namespace) -> int:
    """Find TRL's fastest batch size by one run with each."""
    speeds = {
        size: run(("trl", "--batch", str(size)), base, options)["tokens_per_second"] for size in options.sizes
    }
    say("TRL by batch size: " + ", ".join(f"{size}: {speed:.0f} tokens/s" for size, speed in speeds.items()))
    return max(speeds, key=lambda size: speeds[size])


def bf16_pays() -> bool:
    from loratune.doctor.hardware import MATMUL_SHAPE
    from loratune.system.hardware import is_bf16_fast

    return is_bf16_fast(*MATMUL_SHAPE)


def make_base(model: str, folder: Path) -> str:
    """Return a model folder that all tools read; gpt2-shape has random weights, and SmolLM2's tokenizer,
    whose ids fit.
    """
    from loratune.models.resolve import resolve_model

    if model != "gpt2-shape":
        return str(resolve_model(model).folder)
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve_model("smollm2-135m").folder).save_pretrained(folder)
    return str(folder)


def run(words: Sequence[str], base: str, options: Namespace) -> Measured:
    """Measure one tool in a process of its own, so that its peak memory is its own; the result is its last
    line.
    """
    precision = () if "--precision" in words else ("--precision", options.precision)
    asked = (*words, *precision, "--base", base, "--rows", str(options.rows))
    command = [sys.executable, "-m", "benchmarks.contestants", *asked]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if result.returncode:
        sys.exit(f"{' '.join(command)}\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=72)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8], help="TRL's batch sizes to try")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    add_record_option(parser)
    return parser


if __name__ == "__main__":
    main(parse_options(build_parser()))
