"""loratune against TRL and against a plain Trainer: real tokens/s, peak memory, and the loss that the same
rows lead to.

    .venv/bin/pip install -r benchmarks/requirements.txt .venv/bin/python benchmarks/peers.py --model
  smollm2-135m        # or gpt2-shape: 124M random weights in GPT-2's shape

All train the same rows of the shipped Dolly and FinQA in the same order, with rank 16 on all linear layers,
AdamW, a constant rate, and fp32 unless said otherwise. A process of its own runs each, in turn, and the
median of the rounds counts:

loratune    packed, about 1,024 tokens a step, as in a run of ordinary length; so with `--low-memory`; and,
  where this processor multiplies much faster in bf16, in that trl         SFTTrainer + PEFT on
  prompt/completion, 8 rows a step; its batch size is the fastest of --sizes trainer     transformers' Trainer
  + PEFT, each row padded to 512 tokens, 8 rows a step: the usual tutorial

A real token is one of a row's own, counted once; padding is none. The held-out loss of each adapter is
measured by the same code, on the same rows. A run's first step is left out of its speed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

CONTESTANTS = Path(__file__).with_name("contestants.py")


def main(options) -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(options.model, Path(folder))
        tried = {size: run("trl", base, options, size)["tokens_per_second"] for size in options.sizes}
        best = max(tried, key=tried.get)
        say(
            "TRL by batch size: "
            + ", ".join(f"{size}: {speed:.0f} tokens/s" for size, speed in tried.items())
        )
        entries = {
            "loratune": ("loratune", 0),
            "loratune, low memory": ("loratune", 0, "--low-memory"),
            **(
                {"loratune, bf16": ("loratune", 0, "--precision", "bf16")}
                if options.precision == "fp32" and bf16_pays()
                else {}
            ),
            f"TRL, batch {best}": ("trl", best),
            "Trainer, padded": ("trainer", 8),
        }
        results: dict[str, list[dict]] = {name: [] for name in entries}
        for _ in range(options.rounds):
            for name, (worker, *how) in entries.items():
                results[name].append(run(worker, base, options, *how))
                say(f"{name}: {results[name][-1]}")
    show(results, options)


def show(results: dict[str, list[dict]], options) -> None:
    print(f"\n{options.model}, {options.precision}, {options.rows} rows, median of {options.rounds}\n")
    peers = {
        name: median_of(runs, "tokens_per_second")
        for name, runs in results.items()
        if not name.startswith("loratune")
    }
    print(
        "| | real tokens/s | "
        + " | ".join(f"against {name}" for name in peers)
        + " | peak memory | held-out loss |"
    )
    print("|---" * (len(peers) + 4) + "|")
    for name, runs in results.items():
        speed, memory, loss = (
            median_of(runs, what) for what in ("tokens_per_second", "peak_memory_mb", "loss")
        )
        ratios = " | ".join(f"{speed / theirs:.2f}x" for theirs in peers.values())
        print(f"| {name} | {speed:.0f} | {ratios} | {memory / 1000:.2f} GB | {loss:.3f} |")


def median_of(runs: list[dict], what: str) -> float:
    return median(one[what] for one in runs)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def bf16_pays() -> bool:
    from loratune.doctor.hardware import MATMUL_SHAPE
    from loratune.system.hardware import is_bf16_fast

    return is_bf16_fast(*MATMUL_SHAPE)


def make_base(model: str, folder: Path) -> str:
    """A model folder for all three; gpt2-shape has random weights, and SmolLM2's tokenizer, whose ids fit."""
    from loratune.models.resolve import resolve_model

    if model != "gpt2-shape":
        return str(resolve_model(model).folder)
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve_model("smollm2-135m").folder).save_pretrained(folder)
    return str(folder)


def run(worker: str, base: str, options, batch: int, *more: str) -> dict:
    """One measurement in a process of its own, so that its peak memory is its own; the result is its last
    line.
    """
    words = [
        worker,
        "--base",
        base,
        "--rows",
        str(options.rows),
        "--batch",
        str(batch),
        "--precision",
        options.precision,
        *more,
    ]
    result = subprocess.run([sys.executable, CONTESTANTS, *words], capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(words)}\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=72)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8], help="TRL's batch sizes to try")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    main(parser.parse_args())
