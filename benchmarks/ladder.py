"""What each optimisation of the training step brings: from a straightforward implementation to loratune's,
one at a time.

    python -m benchmarks.ladder --model smollm2-135m

`--model gpt2-shape` has 124M random weights in GPT-2's shape. Each line is loratune's own step with all that
stands below it undone: it takes the plain forms of the ops (`models/ops/reference.py`) and objectives that
compute more than they need. All train the same rows of the shipped Dolly and FinQA, 2,048 tokens an optimiser
step, rank 16 on all linear layers, in fp32 unless said otherwise:

plain step       rows in their order, as many as fit in 2,048 tokens when each is padded to the longest; the
                 logits of all tokens in one matrix, F.cross_entropy over it, torch's
                 scaled_dot_product_attention, all derivatives by autograd
packed           documents lie end to end, micro-batches of 2,048 tokens; attention inside each document
head             logits of the target tokens only, 1,024 vocabulary entries at a time, their gradient formed
                 in the forward pass
last layer       computes the target tokens only, once they have attended
by hand          derivatives written out: LoRA's product is added in place, norms and activations are
                 recomputed, not kept
blocks           attention of long documents in blocks of about 96 queries, each computed by one thread
1,024 tokens     the step's rows in micro-batches of 1,024 tokens by best fit
bf16             the large products, where this machine is faster with it
low memory       `--low-memory`: activations are recomputed in the backward pass

A process of its own measures each line, in turn, and the median of the rounds counts. A real token is one of
a row's own, padding is none; the first step is left out of the speed. Loss and gradient norm of that step
must be the same in all lines, within 1e-4 in fp32, or nothing is printed. B is random instead of 0, so that
the gradients of A are not 0 either.
"""

import argparse
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.contestants import ALPHA, MICRO_TOKENS, RANK, RATE, Clock, real_rows, tokens_of
from benchmarks.generation import apart
from benchmarks.peers import Measured, count, make_base, median_of, round_values, say
from benchmarks.record import MEMORY, SPEED, Column, Row, add_record_option, parse_options, show_and_record
from loratune.data.example import Example
from loratune.data.packing import Batch, batch_in_order, input_length, pack, pack_best_fit
from loratune.models.decoder import Decoder
from loratune.models.load import PRECISIONS, load_model, set_precision
from loratune.models.lora import adapter_parameters, add_lora
from loratune.models.ops.attention import packed_attention
from loratune.models.ops.nll import token_nll
from loratune.models.ops.reference import Op, use_reference
from loratune.models.resolve import resolve_model
from loratune.models.tokenizer import Tokenizer
from loratune.system.hardware import is_bf16_fast, set_up_device
from loratune.system.memory import peak_memory_mb, release_memory_when_freed
from loratune.training.objective import Objective, ResponseNll
from loratune.training.step import adamw, train_step

STEP_TOKENS = 2048  # more than MICRO_TOKENS: a step of one micro-batch would not show what micro-batches cost
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}  # of loss and gradient norm, relative; bf16 has 3 digits
LABELS = (
    "plain step",
    "+ packed",
    "+ head on target tokens, in blocks",
    "+ last layer for target tokens",
    "+ derivatives by hand",
    "+ attention in blocks",
    "+ micro-batches of 1,024 tokens",
    "+ bf16",
    "+ low memory",
)
PLAIN, PACKED, HEAD, LAST_LAYER, BY_HAND, BLOCKS, MICRO_BATCHES, BF16, LOW_MEMORY = range(len(LABELS))
COLUMNS = [
    SPEED,
    Column(key="rounds", title="in each round"),
    Column(key="over_above", title="over the line above", unit="x", decimals=2),
    Column(key="over_plain", title="over the plain step", unit="x", decimals=2),
    MEMORY,
]


@dataclass(frozen=True)
class Measurement:
    precision: str
    loss: float  # of the first step
    grad_norm: float
    tokens_per_second: float
    peak_memory_gb: float


def main(options: Namespace) -> None:
    with TemporaryDirectory() as folder:
        base = apart(make_base, options.model, Path(folder))
        rows, fast = apart(read_rows, base, options.rows), apart(prefers_bf16, base)
        results: dict[int, list[Measurement]] = {
            rung: [] for rung in range(len(LABELS)) if fast or rung != BF16
        }
        for _ in range(options.rounds):
            for rung in results:
                results[rung].append(
                    apart(measure, rung, "bf16" if fast and rung >= BF16 else "fp32", base, rows)
                )
                say(f"{LABELS[rung]}: {results[rung][-1]}")
    assert_same(results)
    show_and_record(
        options,
        title=f"The optimisation ladder: {options.model}",
        what=f"Real Dolly and FinQA rows ({options.rows}), 2,048 tokens a step, rank 16 on all linear "
        f"layers; median of {count(options.rounds, 'round')} in turn. Each line has the optimisations of all "
        "lines above it. Loss and gradient norm of the first step are equal in all lines.",
        columns=COLUMNS,
        rows=build_rows(results),
    )


def read_rows(base: str, count: int) -> list[Example]:
    return real_rows(Tokenizer.load(Path(base)), count)[0]


def prefers_bf16(base: str) -> bool:
    set_up_device(0, "cpu")
    spec = load_model(resolve_model(base)).decoder.spec
    return is_bf16_fast(spec.hidden_size, spec.intermediate_size)


def measure(rung: int, precision: str, base: str, rows: list[Example]) -> Measurement:
    set_up_device(0, "cpu")
    if rung == LOW_MEMORY:
        release_memory_when_freed()
    decoder = adapted(base, precision)
    decoder.gradient_checkpointing = rung == LOW_MEMORY
    optimizer, clock, results = adamw(decoder.train(), 0.0), Clock(), []
    with use_reference(*choose_reference_ops(rung)):
        for group in batch_in_order([input_length(row) for row in rows], range(len(rows)), STEP_TOKENS):
            chosen = [rows[number] for number in group]
            results.append(
                train_step(
                    decoder,
                    optimizer,
                    list(batches(rung, chosen)),
                    objective=choose_objective(rung),
                    learning_rate=RATE,
                    clip=1.0,
                )
            )
            clock.tick(sum(map(tokens_of, chosen)))
    return Measurement(
        precision=precision,
        loss=results[0].loss,
        grad_norm=results[0].grad_norm,
        tokens_per_second=clock.tokens_per_second(),
        peak_memory_gb=peak_memory_mb() / 1000,
    )


def adapted(base: str, precision: str) -> Decoder:
    decoder = set_precision(load_model(resolve_model(base)).decoder, PRECISIONS[precision])
    add_lora(decoder, RANK, ALPHA, dropout=0.0, targets=["all"])
    torch.manual_seed(0)
    for B in (one for name, one in adapter_parameters(decoder).items() if ".lora_B." in name):
        torch.nn.init.normal_(B, std=0.01)
    return decoder


def choose_reference_ops(rung: int) -> Iterator[Op]:
    """Yield the ops of which this rung has the plain form."""
    if rung < BLOCKS:
        yield "attention"
    if rung < BY_HAND:
        yield from ("elementwise", "linear")


def batches(rung: int, rows: list[Example]) -> Iterator[Batch]:
    """The micro-batches of one optimiser step."""
    lengths = [input_length(row) for row in rows]
    if rung == PLAIN:
        yield from (padded([rows[number] for number in part]) for part in fill_padded(lengths))
    elif rung < MICRO_BATCHES:
        yield pack(rows)
    else:
        yield from (
            pack([rows[number] for number in part])
            for part in pack_best_fit(lengths, range(len(rows)), MICRO_TOKENS)
        )


def fill_padded(lengths: list[int]) -> Iterator[list[int]]:
    """Consecutive rows, of at most 2,048 tokens with their padding; a longer row by itself."""
    part: list[int] = []
    for number in range(len(lengths)):
        if part and (len(part) + 1) * max(lengths[row] for row in [*part, number]) > STEP_TOKENS:
            yield part
            part = []
        part.append(number)
    yield part


def padded(rows: list[Example]) -> Batch:
    """Each row padded on the right to the longest: there, the causal mask alone keeps the padding from being
    seen.
    """
    batch = pack(rows)
    longest = max(batch.lengths)
    starts = torch.repeat_interleave(torch.arange(len(rows)) * longest, torch.tensor(batch.lengths))
    place = starts + batch.position_ids
    ids = torch.zeros(len(rows) * longest, dtype=torch.long).index_copy(0, place, batch.input_ids)
    positions = torch.arange(longest).repeat(len(rows))
    lengths = [longest] * len(rows)
    return replace(
        batch, input_ids=ids, position_ids=positions, lengths=lengths, target_index=place[batch.target_index]
    )


class AllLogits(ResponseNll):
    """Cross-entropy over the logits of all tokens."""

    def losses(self, decoder: Decoder, batch: Batch) -> Tensor:
        attend = packed_attention(batch.lengths)
        logits = decoder.logits(decoder(batch.input_ids, batch.position_ids, attend))
        labels = torch.full_like(batch.input_ids, -100).index_copy(0, batch.target_index, batch.targets)
        return F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")


class WholeLayers(ResponseNll):
    """The last layer computes all tokens, the head only those that predict a target."""

    def losses(self, decoder: Decoder, batch: Batch) -> Tensor:
        attend = packed_attention(batch.lengths)
        hidden = decoder(batch.input_ids, batch.position_ids, attend)[batch.target_index]
        return token_nll(hidden, decoder.head_weight, batch.targets)


def choose_objective(rung: int) -> Objective:
    if rung < HEAD:
        return AllLogits()
    return WholeLayers() if rung < LAST_LAYER else ResponseNll()


def assert_same(results: dict[int, list[Measurement]]) -> None:
    ours = results[MICRO_BATCHES][0]
    for rung, runs in results.items():
        for run in runs:
            off = max(abs(run.loss / ours.loss - 1), abs(run.grad_norm / ours.grad_norm - 1))
            assert off <= TOLERANCE[run.precision], (
                f"{LABELS[rung]}: the first step is {off:.1e} off: {run}, not {ours}"
            )


def build_rows(results: dict[int, list[Measurement]]) -> list[Row]:
    rows, plain, above = [], 0.0, 0.0
    for rung, runs in results.items():
        values: Measured = median_of(
            [{SPEED.key: run.tokens_per_second, MEMORY.key: run.peak_memory_gb} for run in runs]
        )
        speed = values[SPEED.key]
        plain, above = plain or speed, above or speed
        values |= {"over_above": speed / above, "over_plain": speed / plain}
        rounds = [round(run.tokens_per_second, 1) for run in runs]
        rows.append(Row(name=LABELS[rung], values={**round_values(values), "rounds": rounds}))
        above = speed
    return rows


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=72)
    parser.add_argument("--rounds", type=int, default=3)
    add_record_option(parser)
    return parser


if __name__ == "__main__":
    main(parse_options(build_parser()))
