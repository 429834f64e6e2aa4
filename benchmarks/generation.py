"""loratune's batched decoding against `transformers.generate`: generated tokens/s, peak memory, and whether
both write the same.

    python -m benchmarks.generation --model smollm2-135m --adapter model/dolly     # or no --adapter

The prompts are rows of the shipped Dolly and FinQA in the default template: half are short, half carry a page
of a report. Both decode greedily. A process of its own does each run, in turn, and the median of the rounds
counts:

loratune       `generate`, the prompts in their own order
transformers   `generate` with a cache and sdpa attention, the adapter merged into the weights by PEFT; the
               prompts sorted by length, so that little is padded on the left

loratune has its default batch size, transformers the one of --sizes that is its best for every second prompt.
A generated token is one of an answer, end-of-text included; what is computed for a row after its end counts
for nothing. Where the answers differ, the larger gap of the two logits says whether it is a tie, which
rounding decides, or a mistake.
"""

import argparse
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.peers import count, make_base, say
from benchmarks.record import MEMORY, Column, Row, add_record_option, parse_options, show_and_record
from loratune.generation.decoding import Decoding
from loratune.generation.engine import MAX_SLOTS
from loratune.models.load import PRECISIONS

TIE = 1e-3  # a gap of two logits that fp32 rounding can close


COLUMNS = [
    Column(key="tokens", title="generated tokens"),
    Column(key="seconds", title="seconds"),
    Column(key="tokens_per_second", title="tokens/s", decimals=1),
    Column(key="rounds", title="in each round", decimals=1),
    Column(key="ratio", title="against transformers", unit="x", decimals=2),
    MEMORY,
]


@dataclass(frozen=True)
class Outcome:
    answers: list[list[int]]  # in the prompts' order, each with its end-of-text
    seconds: float
    peak_memory_mb: float

    @property
    def tokens(self) -> int:
        return sum(map(len, self.answers))

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds


def main(options: Namespace) -> None:
    with TemporaryDirectory() as folder:
        options.base = make_base(options.model, Path(folder))
        prompts = apart(read_prompts, options)
        entries = [(loratune, MAX_SLOTS), (transformers, find_best_batch(options, prompts))]
        outcomes: dict[str, list[Outcome]] = {}
        for _ in range(options.rounds):
            for run, size in entries:
                outcome = apart(run, options, prompts, size)
                outcomes.setdefault(f"{run.__name__}, batch {size}", []).append(outcome)
                say(f"{run.__name__}, batch {size}: {outcome.speed:.1f} tokens/s")
        ours, theirs = (runs[0].answers for runs in outcomes.values())
        compared = compare(options, prompts, ours, theirs)
    adapter = "with an adapter" if options.adapter else "without an adapter"
    show_and_record(
        options,
        title=f"Generation against transformers: {options.model}, {options.precision}",
        what=f"{options.prompts} real prompts, at most {options.max_new_tokens} new tokens, {adapter}, "
        f"greedy; median of {count(options.rounds, 'round')} in turn.",
        columns=COLUMNS,
        rows=build_rows(outcomes),
        notes=compared,
    )


def apart(work: Callable, *arguments):
    """Call it in a new process, so that its peak memory is its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def read_prompts(options: Namespace) -> list[list[int]]:
    from benchmarks.contestants import real_rows
    from loratune.models.tokenizer import Tokenizer

    rows, _ = real_rows(Tokenizer.load(Path(options.base)), options.prompts)
    return [row.prompt for row in rows]


def find_best_batch(options: Namespace, prompts: list[list[int]]) -> int:
    """Find the best batch size of transformers on every second prompt: of all lengths, and enough for the
    largest size.
    """
    if len(options.sizes) == 1:
        return options.sizes[0]
    some = sorted(prompts, key=len)[::2]
    speeds = {size: apart(transformers, options, some, size).speed for size in options.sizes}
    tried = ", ".join(f"{size}: {speed:.1f} tokens/s" for size, speed in speeds.items())
    say(f"transformers by batch size: {tried}")
    return max(speeds, key=lambda size: speeds[size])


def loratune(options: Namespace, prompts: list[list[int]], size: int) -> Outcome:
    from loratune.generation.engine import generate
    from loratune.generation.request import build_requests
    from loratune.models.adapter import load_adapter
    from loratune.models.load import load_model
    from loratune.models.resolve import resolve_model
    from loratune.system.hardware import set_up_device
    from loratune.system.memory import peak_memory_mb

    set_up_device(0, "cpu")
    base = load_model(resolve_model(options.base), PRECISIONS[options.precision])
    if options.adapter:
        load_adapter(base.decoder, options.adapter)
    eos = base.tokenizer.eos_id
    start = time.perf_counter()
    requests = build_requests(prompts, Decoding(max_new_tokens=options.max_new_tokens))
    answers = generate(base.decoder, requests, {eos}, batch_size=size)
    seconds = time.perf_counter() - start
    return Outcome(
        [answer.ids + [eos] * (answer.ended == "eos") for answer in answers], seconds, peak_memory_mb()
    )


def transformers(options: Namespace, prompts: list[list[int]], size: int) -> Outcome:
    from loratune.system.hardware import set_up_device
    from loratune.system.memory import peak_memory_mb

    set_up_device(0, "cpu")
    model, eos = reference(options)
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    answers: dict[int, list[int]] = {}
    start = time.perf_counter()
    for first in range(0, len(order), size):
        numbers = order[first : first + size]
        written = padded_generate(model, [prompts[number] for number in numbers], eos, options.max_new_tokens)
        answers |= zip(numbers, written, strict=True)
    seconds = time.perf_counter() - start
    return Outcome([answers[number] for number in range(len(prompts))], seconds, peak_memory_mb())


def padded_generate(model, prompts: Sequence[list[int]], eos: int, max_new_tokens: int) -> list[list[int]]:
    import torch

    width = max(map(len, prompts))
    ids = torch.tensor([[eos] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode():
        rows = model.generate(ids, attention_mask=mask, max_new_tokens=max_new_tokens)[:, width:].tolist()
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


def reference(options: Namespace):
    """Return the model as `transformers` has it, the adapter merged in, and its end-of-text."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    from loratune.models.tokenizer import Tokenizer

    eos = Tokenizer.load(Path(options.base)).eos_id
    precision = PRECISIONS[options.precision]
    model = AutoModelForCausalLM.from_pretrained(
        options.base, dtype=precision, attn_implementation="sdpa"
    ).eval()
    if options.adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, options.adapter).merge_and_unload()
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=eos, pad_token_id=eos)
    return model, eos


def build_rows(outcomes: dict[str, list[Outcome]]) -> list[Row]:
    speeds = {name: median(run.speed for run in runs) for name, runs in outcomes.items()}
    theirs = speeds[list(outcomes)[-1]]
    return [
        Row(
            name=name,
            values={
                "tokens": runs[0].tokens,
                "seconds": round(median(run.seconds for run in runs), 1),
                "tokens_per_second": round(speeds[name], 2),
                "rounds": [round(run.speed, 2) for run in runs],
                "ratio": round(speeds[name] / theirs, 4),
                "peak_memory_gb": round(max(run.peak_memory_mb for run in runs) / 1000, 3),
            },
        )
        for name, runs in outcomes.items()
    ]


def compare(
    options: Namespace, prompts: list[list[int]], ours: list[list[int]], theirs: list[list[int]]
) -> str:
    """Say how many answers are equal, and how far apart the logits are where the others part."""
    contexts = [
        fork(prompt, *pair) for prompt, *pair in zip(prompts, ours, theirs, strict=True) if pair[0] != pair[1]
    ]
    equal = f"{len(prompts) - len(contexts)} of {len(prompts)} answers are equal token for token."
    if not contexts:
        return equal
    gaps = sorted(apart(logit_gaps, options, contexts))
    ties = sum(gap < TIE for gap in gaps)
    return (
        f"{equal} {len(gaps)} differ, {ties} by a tie: where they part, the two logits are {gaps[0]:.1e} to "
        f"{gaps[-1]:.1e} apart."
    )


def fork(prompt: list[int], one: list[int], other: list[int]) -> tuple[list[int], int, int]:
    """Return what stands before the first difference of two answers, and the two tokens there."""
    place = next(place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return prompt + one[:place], one[place], other[place]


def logit_gaps(options: Namespace, contexts: list[tuple[list[int], int, int]]) -> list[float]:
    """Return how far apart `transformers` finds the two tokens after each context, computed alone."""
    import torch

    model, _ = reference(options)
    with torch.inference_mode():
        logits = [
            model(torch.tensor([ids]), logits_to_keep=1).logits[0, -1].float() for ids, _, _ in contexts
        ]
    return [abs(float(row[one] - row[other])) for row, (_, one, other) in zip(logits, contexts, strict=True)]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="smollm2-135m", help="or gpt2-shape: 124M random weights in GPT-2's shape"
    )
    parser.add_argument("--adapter", type=Path, help="folder of an adapter that was trained on this model")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[1, 4, 8, 16, 32, 64],
        help="batch sizes that transformers tries",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    add_record_option(parser)
    return parser


if __name__ == "__main__":
    main(parse_options(build_parser()))
