"""How fast loratune trains, by model size, row length, rank and threads, and how much of what the processor
can do that is.

    python -m benchmarks.scaling                    # the four GPT-2 shapes and SmolLM2
    python -m benchmarks.scaling --models smollm2-135m gpt2 --precision bf16

The weights are random and in the models' shapes, the rows random and of one length; speed does not depend on
the values. A model's depth is cut to 4 layers and to 2, and the line through both times gives the whole
model's (as `loratune train` does for its estimate). A run is two micro-batches of 1,024 tokens; one token in
four is a target. Both depths and the limit's products take turns, five times, and the fastest of each counts:
on a shared machine a slow minute then slows them all.

The last column compares with the limit. Necessary are, for each token and each weight of the layers, 2
floating-point operations forward and 2 backward (the weights are frozen and get no gradient), and as much for
the head, on target tokens only; attention, LoRA and all else count as nothing. The limit is the same number
of operations at the rate of the layers' own matrix products.
"""

import argparse
import math
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F

from benchmarks.peers import say
from benchmarks.record import Column, Row, add_record_option, parse_options, show_and_record
from loratune.data.example import Example
from loratune.data.packing import pack
from loratune.models.decoder import Decoder
from loratune.models.load import PRECISIONS
from loratune.models.lora import named_linears
from loratune.models.spec import DecoderSpec
from loratune.system.hardware import count_usable_cores
from loratune.training.autotune import MEASURED_DEPTHS, build_shallow_decoder, time_per_token
from loratune.training.plan import AdapterSettings, StepSettings

TOKENS, MICRO_TOKENS, TARGET_SHARE, LENGTH, RANK, ROUNDS = 2048, 1024, 4, 256, 16, 5
LENGTHS, RANKS = (128, 512, 1024), (1, 8, 64, 128)
GPT2 = {
    "gpt2": (768, 12, 12),
    "gpt2-medium": (1024, 24, 16),
    "gpt2-large": (1280, 36, 20),
    "gpt2-xl": (1600, 48, 25),
}


COLUMNS = [
    Column(key="weights", title="weights in products", unit=" M"),
    Column(key="tokens_per_second", title="tokens/s"),
    Column(key="share", title="of the limit", unit=" %"),
]


def main(options: Namespace) -> None:
    torch.set_num_threads(options.threads or count_usable_cores())
    threads, rows = torch.get_num_threads(), []
    for name in options.models:
        decoder = random_decoder(shape_of(name))
        rows.append(measure(f"{name}, rows of {LENGTH}, rank {RANK}", decoder, options.precision))
        if name == options.models[0]:
            rows.extend(vary(name, decoder, options.precision))
    show_and_record(
        options,
        title=f"Training speed by model, row length and rank: {options.precision}, {threads} threads",
        what="Random weights in the models' shapes. The limit is the speed at which the necessary matrix "
        "products alone would run, at the rate that this processor reaches with the layers' own shapes.",
        columns=COLUMNS,
        rows=rows,
    )


def vary(name: str, decoder: Decoder, precision: str) -> Iterator[Row]:
    """Yield other row lengths, ranks and threads, one at a time."""
    for length in LENGTHS:
        yield measure(f"{name}, rows of {length}", decoder, precision, length=length)
    for rank in RANKS:
        yield measure(f"{name}, rank {rank}", decoder, precision, rank=rank)
    if (threads := torch.get_num_threads()) > 1:
        torch.set_num_threads(1)
        yield measure(f"{name}, 1 thread (limit: 1 thread)", decoder, precision)
        torch.set_num_threads(threads)


def measure(what: str, decoder: Decoder, precision: str, *, length: int = LENGTH, rank: int = RANK) -> Row:
    tokens_per_second, share = speed(decoder, length, rank, precision=precision)
    values = {
        "weights": round(sum(weights_of(decoder.spec)) / 1e6, 1),
        "tokens_per_second": round(tokens_per_second, 1),
        "share": round(100 * share, 1),
    }
    say(f"{what}: {values}")
    return Row(name=what, values=values)


def speed(decoder: Decoder, length: int, rank: int, *, precision: str) -> tuple[float, float]:
    """Return tokens/s of the whole model, and the share of the limit."""
    row = Example(
        prompt=[1] * (length - length // TARGET_SHARE + 1),
        response=[2] * (length // TARGET_SHARE),
        id="",
        source="",
    )
    batches = [pack([row] * (MICRO_TOKENS // length))] * (TOKENS // MICRO_TOKENS)
    adapter = AdapterSettings(rank, alpha=rank, dropout=0.0, targets=("all",), seed=0)
    step = StepSettings(adapter, batch_tokens=MICRO_TOKENS, low_memory=False, seed=0)
    shallow = [build_shallow_decoder(decoder, depth, step, precision=precision) for depth in MEASURED_DEPTHS]
    rounds = [
        (*time_per_token(shallow, batches, training=True), product_seconds(decoder, precision))
        for _ in range(ROUNDS)
    ]
    *depths, an_operation = map(min, zip(*rounds, strict=True))
    a_token = depths[0] + (depths[1] - depths[0]) / (MEASURED_DEPTHS[1] - MEASURED_DEPTHS[0]) * (
        decoder.spec.layers - MEASURED_DEPTHS[0]
    )
    layers, head = weights_of(decoder.spec)
    necessary = 4 * (layers + head / TARGET_SHARE)
    return 1 / a_token, necessary * an_operation / a_token


def product_seconds(decoder: Decoder, precision: str) -> float:
    """Return the seconds that a floating-point operation of y = x Wᵀ takes with the layers' own W, the best
    of five passes over one layer.
    """
    first = [
        linear.weight.to(PRECISIONS[precision])
        for name, linear in named_linears(decoder)
        if name.startswith("layers.0.")
    ]
    inputs = [torch.randn(MICRO_TOKENS, weight.shape[1], dtype=weight.dtype) for weight in first]
    best = math.inf
    for _ in range(5):
        started = time.perf_counter()
        for x, weight in zip(inputs, first, strict=True):
            F.linear(x, weight)
        best = min(best, time.perf_counter() - started)
    return best / sum(2 * MICRO_TOKENS * weight.numel() for weight in first)


def weights_of(spec: DecoderSpec) -> tuple[int, int]:
    """Return the numbers of parameters in the layers' matrices and in the head."""
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    layer = spec.hidden_size * (2 * queries + 2 * keys + (3 if spec.gated else 2) * spec.intermediate_size)
    return spec.layers * layer, spec.hidden_size * spec.vocab_size


def random_decoder(spec: DecoderSpec) -> Decoder:
    """Build the model's first layers with random weights; its spec still counts all of them."""
    shallow = Decoder(replace(spec, layers=max(MEASURED_DEPTHS)))
    for parameter in shallow.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    shallow.spec = spec
    return shallow.requires_grad_(False)


def shape_of(name: str) -> DecoderSpec:
    if name not in GPT2:
        from loratune.models.load import load_model
        from loratune.models.resolve import resolve_model

        return load_model(resolve_model(name)).decoder.spec
    from transformers import GPT2Config

    from loratune.models.architectures import build_spec

    width, layers, heads = GPT2[name]
    return build_spec(GPT2Config(n_embd=width, n_layer=layers, n_head=heads))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["smollm2-135m", *GPT2])
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--threads", type=int, default=0)
    add_record_option(parser)
    return parser


if __name__ == "__main__":
    main(parse_options(build_parser()))
