"""How fast loratune trains, by model size, row length, rank and threads, and how much of what the processor
can do that is.

    .venv/bin/python benchmarks/scaling.py                    # the four GPT-2 shapes and SmolLM2
    .venv/bin/python benchmarks/scaling.py --models smollm2-135m gpt2 --precision bf16

The weights are random and in the models' shapes, the rows random and of one length; speed does not depend on
the values. A model's depth is cut to 4 layers and to 2, and the line through both times gives the whole
model's (as `loratune train` does for its forecast). A run is 2,048 tokens, 1,024 at once; one token in four
is a target. Both depths and the limit's products take turns, five times, and the fastest of each counts: on a
shared machine a slow minute then slows them all.

The last column compares with the limit. Necessary are, for each token and each weight of the layers, 2
floating-point operations forward and 2 backward (the weights are frozen and get no gradient), and as much for
the head, on target tokens only; attention, LoRA and all else count as nothing. The limit is the same number
of operations at the rate of the layers' own matrix products.
"""

import argparse
import math
import time
from dataclasses import replace

import torch

from loratune.data.example import Example
from loratune.data.packing import pack
from loratune.models.decoder import Decoder
from loratune.models.load import PRECISIONS
from loratune.models.lora import named_linears
from loratune.models.spec import DecoderSpec
from loratune.system.hardware import count_usable_cores
from loratune.training.autotune import MEASURED_DEPTHS, build_shallow_decoder, time_per_token
from loratune.training.plan import AdapterSettings, StepSettings

TOKENS, AT_ONCE, TARGET_SHARE, LENGTH, RANK, ROUNDS = 2048, 1024, 4, 256, 16, 5
LENGTHS, RANKS = (128, 512, 1024), (1, 8, 64, 128)
GPT2 = {
    "gpt2": (768, 12, 12),
    "gpt2-medium": (1024, 24, 16),
    "gpt2-large": (1280, 36, 20),
    "gpt2-xl": (1600, 48, 25),
}


def main(options) -> None:
    torch.set_num_threads(options.threads or count_usable_cores())
    print(
        f"| {options.precision}, {torch.get_num_threads()} threads | weights | tokens/s | of the limit "
        "|\n|---|---|---|---|"
    )
    for name in options.models:
        decoder = random_decoder(shape_of(name))
        report(f"{name}, rows of {LENGTH}, rank {RANK}", decoder, options.precision)
        if name == options.models[0]:
            vary(name, decoder, options.precision)


def vary(name: str, decoder: Decoder, precision: str) -> None:
    """Other row lengths, ranks and threads, one at a time."""
    for length in LENGTHS:
        report(f"{name}, rows of {length}", decoder, precision, length=length)
    for rank in RANKS:
        report(f"{name}, rank {rank}", decoder, precision, rank=rank)
    if (threads := torch.get_num_threads()) > 1:
        torch.set_num_threads(1)
        report(f"{name}, 1 thread (limit: 1 thread)", decoder, precision)
        torch.set_num_threads(threads)


def report(what: str, decoder: Decoder, precision: str, length: int = LENGTH, rank: int = RANK) -> None:
    tokens_per_second, share = speed(decoder, length, rank, precision)
    print(
        f"| {what} | {sum(weights_of(decoder.spec)) / 1e6:,.0f} M | {tokens_per_second:,.0f} | {share:.0%} |",
        flush=True,
    )


def speed(decoder: Decoder, length: int, rank: int, precision: str) -> tuple[float, float]:
    """Tokens/s of the whole model, and the share of the limit."""
    row = Example(
        prompt=[1] * (length - length // TARGET_SHARE + 1),
        response=[2] * (length // TARGET_SHARE),
        id="",
        source="",
    )
    batches = [pack([row] * (AT_ONCE // length))] * (TOKENS // AT_ONCE)
    adapter = AdapterSettings(rank, alpha=rank, dropout=0.0, targets=("all",), seed=0)
    step = StepSettings(adapter, batch_tokens=AT_ONCE, low_memory=False, seed=0)
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
    """Seconds a floating-point operation of y = x Wᵀ takes with the layers' own W, the best of five passes
    over one layer.
    """
    first = [
        linear.weight.to(PRECISIONS[precision])
        for name, linear in named_linears(decoder)
        if name.startswith("layers.0.")
    ]
    inputs = [torch.randn(AT_ONCE, weight.shape[1], dtype=weight.dtype) for weight in first]
    best = math.inf
    for _ in range(5):
        started = time.perf_counter()
        for x, weight in zip(inputs, first, strict=True):
            x @ weight.t()
        best = min(best, time.perf_counter() - started)
    return best / sum(2 * AT_ONCE * weight.numel() for weight in first)


def weights_of(spec: DecoderSpec) -> tuple[int, int]:
    """The numbers in the layers' matrices, and in the head."""
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    layer = spec.hidden_size * (2 * queries + 2 * keys + (3 if spec.gated else 2) * spec.intermediate_size)
    return spec.layers * layer, spec.hidden_size * spec.vocab_size


def random_decoder(spec: DecoderSpec) -> Decoder:
    """The model's first layers with random weights; as deep as its spec says for all that is counted."""
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["smollm2-135m", *GPT2])
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--threads", type=int, default=0)
    main(parser.parse_args())
