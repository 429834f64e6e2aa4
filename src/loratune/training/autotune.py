"""Autotune: measure speed and memory on the real examples; choose the precision and the micro-batch size.

A step costs a + b x layers, in time and in memory. The first layer needs no gradient of its input and the
last one computes the target tokens only, so depths of 2 and 4 layers give a and b, which is enough to choose
a precision and a micro-batch. The choice is then timed with all layers, because the weights of a few layers
stay in the processor's caches.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from loratune.data.example import Example
from loratune.data.packing import Batch, input_length, iterate_steps, pack
from loratune.models.decoder import Decoder
from loratune.models.load import PRECISIONS, set_precision
from loratune.models.lora import adapter_parameters, add_lora
from loratune.system.atomic import format_json
from loratune.system.cache import MEASUREMENTS, compute_cache_key, get_cache_path, read_cached, write_cached
from loratune.system.hardware import OtherPrograms, identify_processor
from loratune.system.memory import release_freed_memory, resident_memory
from loratune.system.messages import say, track, warn
from loratune.system.read import read_json
from loratune.training.objective import target_nll
from loratune.training.plan import StepSettings

Candidate = tuple[str, int]  # a precision, and the tokens of a micro-batch
MEASURED_DEPTHS = 2, 4
CANDIDATE_MICRO_TOKENS = 1024, 2048
ALLOCATOR_OVERHEAD = 0.3e9  # bytes lost between blocks, measured with glibc
MIN_TIMING_SECONDS = 1.0  # a timing is repeated for at least this long; the fastest repetition counts


@dataclass(frozen=True)
class Measurement:
    """The cost of training with one precision and micro-batch."""

    precision: str
    micro_tokens: int
    train_seconds: float  # per token
    validation_seconds: float  # per token
    memory: float  # bytes: weights, adapter, gradients, optimiser state and activations
    token_memory: float  # bytes of `memory` that each token of the micro-batch adds

    def __str__(self) -> str:
        return (
            f"{self.precision} with micro-batches of {self.micro_tokens:,} tokens: "
            f"{1 / self.train_seconds:,.0f} tokens/s"
        )


def run_autotune(
    decoder: Decoder,
    examples: Sequence[Example],
    step: StepSettings,
    *,
    candidates: list[Candidate],
    cache: Path,
    memory_limit: float,
) -> Measurement:
    """Measure the candidates and return the best one that needs at most `memory_limit` bytes.

    Args:
        decoder: the base model in fp32, without an adapter; it is not changed.
        examples: the training examples.
        step: what an optimiser step computes.
        candidates: to choose from.
        cache: the folder of cached measurements.
        memory_limit: in bytes.
    """
    measurements = []
    for precision, micro_tokens in track(candidates, "measuring what is fastest here"):
        what = {
            "spec": asdict(decoder.spec),
            "precision": precision,
            "micro_tokens": micro_tokens,
            "layers": MEASURED_DEPTHS,
        }
        measure = partial(
            measure_few_layers, decoder, examples, step, precision=precision, micro_tokens=micro_tokens
        )
        measurements.append(measure_cached(cache, what, examples, step=step, measure=measure))
    best = choose_measurement(measurements, memory_limit)
    if len(measurements) > 1:
        say(
            f"Measured on this machine: {'; '.join(map(str, measurements))}. Chosen: {best.precision}, "
            f"{best.micro_tokens:,}."
        )
    return best


def measure_all_layers(
    decoder: Decoder,
    examples: Sequence[Example],
    step: StepSettings,
    *,
    measurement: Measurement,
    cache: Path,
) -> Measurement:
    """Time the whole model and return the measurement with these times.

    Args:
        decoder: the whole model, ready to be trained; it is not changed.
        examples: the training examples.
        step: what an optimiser step computes.
        measurement: of the first layers, with the precision and micro-batch that were chosen.
        cache: the folder of cached measurements.
    """

    def time_whole_model() -> Measurement:
        batches = build_first_step(examples, step, measurement.micro_tokens)
        (train,), (validate,) = (
            time_per_token([decoder.train()], batches, training) for training in (True, False)
        )
        return replace(measurement, train_seconds=train, validation_seconds=validate)

    what = {
        "spec": asdict(decoder.spec),
        "precision": measurement.precision,
        "micro_tokens": measurement.micro_tokens,
        "layers": "all",
    }
    return measure_cached(cache, what, examples, step=step, measure=time_whole_model)


def measure_cached(
    cache: Path,
    what: dict,
    examples: Sequence[Example],
    *,
    step: StepSettings,
    measure: Callable[[], Measurement],
) -> Measurement:
    """Return a measurement from the cache, or make it and cache it, unless other programs disturb it.

    Args:
        cache: the folder of cached measurements.
        what: identifies what is measured.
        examples: the training examples, of whose lengths the mean counts.
        step: what an optimiser step computes.
        measure: makes the measurement.
    """
    path = get_cache_path(cache, MEASUREMENTS, build_cache_key(what, examples, step))
    if cached := read_cached(path, lambda path: Measurement(**read_json(path))):
        return cached
    others = OtherPrograms()
    measurement = measure()
    release_freed_memory()
    if others.are_busy(torch.get_num_threads()):
        warn(
            "other programs are keeping this machine busy, and each step waits for the slowest core: close "
            "them, or leave them a core with `threads`. How fast training is will be measured again next time"
        )
    else:
        write_cached(path, MEASUREMENTS, lambda beside: beside.write_text(format_json(asdict(measurement))))
    return measurement


def build_cache_key(what: dict, examples: Sequence[Example], step: StepSettings) -> str:
    """Compute the cache key of a measurement.

    Of the examples only the mean length counts, because others of that length take as long.
    """
    choices = {
        "rank": step.adapter.rank,
        "dropout": step.adapter.dropout,
        "targets": list(step.adapter.targets),
        "low_memory": step.low_memory,
        "batch_tokens": step.batch_tokens,
    }
    mean = f"{sum(map(input_length, examples)) / len(examples):.1e}"
    machine = {"processor": identify_processor("cpu"), "threads": torch.get_num_threads()}
    return compute_cache_key(what=what, choices=choices, mean_length=mean, machine=machine)


def measure_few_layers(
    decoder: Decoder, examples: Sequence[Example], step: StepSettings, *, precision: str, micro_tokens: int
) -> Measurement:
    """Measure models of the decoder's first layers and extrapolate to all layers."""
    batches = build_first_step(examples, step, micro_tokens)
    largest = max(batches, key=lambda batch: len(batch.input_ids))
    depths = sorted({min(depth, decoder.spec.layers) for depth in MEASURED_DEPTHS})
    shallow = [build_shallow_decoder(decoder, depth, step, precision=precision) for depth in depths]
    activation_bytes = [
        measure_activation_bytes(one, largest) * micro_tokens / len(largest.input_ids) for one in shallow
    ]
    train, validate = (time_per_token(shallow, batches, training) for training in (True, False))
    measured = torch.tensor(
        [train, validate, activation_bytes, list(map(compute_trainable_bytes, shallow))], dtype=torch.float64
    ).T
    # A model of one or two layers is measured whole, so that nothing is added to it below.
    per_layer = (measured[-1] - measured[0]) / max(depths[-1] - depths[0], 1)
    # If another program slowed the smaller model so much that it took longer than the larger one, the whole
    # time of the larger one is divided among its layers.
    per_layer[:2] = torch.where(per_layer[:2] > 0, per_layer[:2], measured[-1][:2] / depths[-1])
    whole = measured[0] + per_layer * (decoder.spec.layers - depths[0])
    train, validate, stored_bytes, trainable_bytes = whole.tolist()
    layer_bytes = per_layer[2].item()  # activations of one layer
    if step.low_memory:
        stored_bytes = decoder.spec.layers * micro_tokens * decoder.spec.hidden_size * 4 + layer_bytes
    overhead = 0.0 if step.low_memory else ALLOCATOR_OVERHEAD
    memory = (
        compute_weight_bytes(decoder, precision) + trainable_bytes + stored_bytes + layer_bytes + overhead
    )
    return Measurement(precision, micro_tokens, train, validate, memory, stored_bytes / micro_tokens)


def build_first_step(examples: Sequence[Example], step: StepSettings, micro_tokens: int) -> list[Batch]:
    """Build the micro-batches of the run's first step."""
    lengths = [input_length(example) for example in examples]
    groups = next(iterate_steps(lengths, step.batch_tokens, micro_tokens, seed=step.seed))
    return [pack([examples[number] for number in group]) for group in groups]


def build_shallow_decoder(decoder: Decoder, depth: int, step: StepSettings, *, precision: str) -> Decoder:
    """Build a model of the decoder's first layers and its LM head, with an adapter.

    In fp32 it shares the decoder's weights.
    """
    with torch.device("meta"):
        shallow = Decoder(replace(decoder.spec, layers=depth))
    weights = decoder.state_dict()
    shallow.load_state_dict({name: weights[name] for name in shallow.state_dict()}, assign=True)
    set_precision(shallow.requires_grad_(False), PRECISIONS[precision])
    adapter = step.adapter
    add_lora(shallow, adapter.rank, adapter.alpha, dropout=adapter.dropout, targets=list(adapter.targets))
    shallow.gradient_checkpointing = step.low_memory
    return shallow.train()


def time_per_token(decoders: Sequence[Decoder], batches: list[Batch], training: bool) -> list[float]:
    """Measure each decoder's seconds per token for a forward pass and, if `training`, a backward pass.

    The decoders take turns, so that a slow phase of the machine affects all of them alike.
    """
    for decoder in decoders:
        run_batches(decoder, batches[:1], training)  # warms up
    best, spent = [math.inf] * len(decoders), 0.0
    while spent < MIN_TIMING_SECONDS * len(decoders):
        for number, decoder in enumerate(decoders):
            started = time.perf_counter()
            run_batches(decoder, batches, training)
            seconds = time.perf_counter() - started
            best[number], spent = min(best[number], seconds), spent + seconds
    tokens = sum(len(batch.input_ids) for batch in batches)
    return [seconds / tokens for seconds in best]


def run_batches(decoder: Decoder, batches: list[Batch], training: bool) -> None:
    with nullcontext() if training else torch.inference_mode():
        for batch in batches:
            loss = target_nll(decoder, batch).sum()
            if training:
                loss.backward()


def measure_activation_bytes(decoder: Decoder, batch: Batch) -> int:
    """Measure the bytes that a forward pass stores for the backward pass, without gradient checkpointing."""
    stored, parameters = {}, {tensor.untyped_storage().data_ptr() for tensor in decoder.parameters()}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            stored[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output that holds itself would never be freed

    checkpointing, decoder.gradient_checkpointing = decoder.gradient_checkpointing, False
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = target_nll(decoder, batch).sum()
    decoder.gradient_checkpointing = checkpointing
    return sum(stored.values()) if loss.requires_grad else 0


def compute_trainable_bytes(decoder: Decoder) -> int:
    """Compute the bytes of the adapter, its gradient and AdamW's two moments."""
    return 4 * sum(parameter.nbytes for parameter in adapter_parameters(decoder).values())


def compute_weight_bytes(decoder: Decoder, precision: str) -> int:
    return sum(tensor.numel() for tensor in decoder.state_dict().values()) * PRECISIONS[precision].itemsize


def measure_memory_besides_weights(decoder: Decoder) -> int:
    """Measure the bytes of the interpreter, the libraries and the data."""
    release_freed_memory()
    # All weights are subtracted, so each of their memory pages must have been read from the file.
    for tensor in decoder.state_dict().values():
        tensor.as_strided((math.ceil(tensor.numel() / 1024),), (1024,)).sum()
    return resident_memory() - compute_weight_bytes(decoder, "fp32")


def list_candidates(
    step: StepSettings, *, precision: str, micro_tokens: int | None, max_tokens: int, bf16_is_fast: bool
) -> list[Candidate]:
    """List the precisions and micro-batches to choose from.

    Args:
        step: what an optimiser step computes.
        precision: fp32, bf16, or auto, which leaves the choice open.
        micro_tokens: None leaves the choice open.
        max_tokens: the longest example, which a micro-batch must hold.
        bf16_is_fast: whether bf16 is worth measuring.
    """
    precisions = [precision]
    if precision == "auto":
        precisions = ["fp32", "bf16"] if bf16_is_fast else ["fp32"]
    sizes = {max(min(size, step.batch_tokens), max_tokens) for size in CANDIDATE_MICRO_TOKENS}
    return [(one, size) for one in precisions for size in ([micro_tokens] if micro_tokens else sorted(sizes))]


def choose_measurement(measurements: list[Measurement], memory_limit: float) -> Measurement:
    """Choose the fastest measurement that fits into `memory_limit` bytes; if none fits, the smallest.

    Speeds within 10 % of the fastest count as equal; then fp32 is preferred, then the smaller micro-batch.
    """
    fitting = [one for one in measurements if one.memory <= memory_limit]
    if not fitting:
        return min(measurements, key=lambda one: one.memory)
    fastest = min(one.train_seconds for one in fitting)
    equally_fast = [one for one in fitting if one.train_seconds <= 1.1 * fastest]
    return min(equally_fast, key=lambda one: (one.precision != "fp32", one.micro_tokens))
