"""How fast training will be, and how large, before it begins: tried on real rows.

What a step costs is a + b x layers, in time and in memory. The first layer has nothing below it and the last
one computes the target rows only, so depths of 2 and 4 layers give a and b. That is enough to choose a
precision and a micro-batch. What was chosen is then timed with all layers: what a few of them compute with
stays in the processor's caches.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch

from loratune.config.train import (
    DEFAULT_BATCH_TOKENS,
    MIN_VAL_ROWS,
    SHORT_RUN_BATCH_TOKENS,
    SHORT_RUN_TOKENS,
    TrainConfig,
)
from loratune.data.example import Example
from loratune.data.packing import Batch, input_length, iterate_steps, pack, plan_epoch
from loratune.models.decoder import Decoder
from loratune.models.load import PRECISIONS, set_precision
from loratune.models.lora import add_lora, trained_parameters
from loratune.models.ops.attention import packed_attention
from loratune.system.atomic import format_json
from loratune.system.cache import MEASUREMENTS, compute_cache_key, get_cache_path, read_cached, write_cached
from loratune.system.hardware import OtherPrograms, identify_processor
from loratune.system.memory import release_freed_memory, resident_memory
from loratune.system.messages import say, track, warn
from loratune.system.read import read_json
from loratune.training.objective import target_loss
from loratune.training.schedule import VALIDATION_TIME_SHARE, StopRule

Candidate = tuple[str, int]  # a precision, and tokens at once
MEASURED_DEPTHS = 2, 4
CANDIDATE_MICRO_TOKENS = 1024, 2048  # tokens at once that are tried
ALLOCATOR_OVERHEAD = 0.3e9  # bytes that the allocator leaves between blocks, as measured with glibc
MIN_TIMING_SECONDS = 1.0  # seconds that a timing takes at least; the fastest of its repetitions counts


@dataclass(frozen=True)
class Measurement:
    """What training costs with one choice of precision and micro-batch."""

    precision: str
    micro_tokens: int
    train_seconds: float  # per token
    validation_seconds: float  # per token
    # Bytes: the weights, the adapter, and all that training adds to them with so many tokens at once.
    memory: float
    token_memory: float  # of these, what each token at once adds

    def __str__(self) -> str:
        return (
            f"{self.precision} with {self.micro_tokens:,} tokens at once: {1 / self.train_seconds:,.0f} "
            "tokens/s"
        )


def run_autotune(
    decoder: Decoder,
    examples: Sequence[Example],
    settings: TrainConfig,
    candidates: list[Candidate],
    cache: Path,
    memory_limit: float,
) -> Measurement:
    """The best of the candidates that needs at most `room` bytes.

    `decoder` is the base model in fp32, without an adapter; it stays as it is.
    """
    trials = []
    for precision, micro_tokens in track(candidates, "trying what is fastest here"):
        what = {
            "spec": asdict(decoder.spec),
            "precision": precision,
            "micro_tokens": micro_tokens,
            "layers": MEASURED_DEPTHS,
        }
        trials.append(
            measure_cached(
                cache,
                what,
                examples,
                settings,
                partial(measure_few_layers, decoder, examples, settings, precision, micro_tokens),
            )
        )
    best = choose_measurement(trials, memory_limit)
    if len(trials) > 1:
        say(
            f"Tried on this machine: {'; '.join(map(str, trials))}. Taken: {best.precision}, "
            f"{best.micro_tokens:,}."
        )
    return best


def measure_all_layers(
    decoder: Decoder,
    examples: Sequence[Example],
    settings: TrainConfig,
    measurement: Measurement,
    cache: Path,
) -> Measurement:
    """The trial with the times of the whole model, which `decoder` is, ready to be trained; it stays as it
    is.
    """

    def timed() -> Measurement:
        batches = build_first_step(examples, settings, measurement.micro_tokens)
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
    return measure_cached(cache, what, examples, settings, timed)


def measure_cached(
    cache: Path,
    what: dict,
    examples: Sequence[Example],
    settings: TrainConfig,
    make: Callable[[], Measurement],
) -> Measurement:
    """A trial of `what` on this machine, for rows of about this length: from the cache, or made and put
    there.

    What was made while other programs kept the machine busy is not put there.
    """
    path = get_cache_path(cache, MEASUREMENTS, build_cache_key(what, examples, settings))
    if cached := read_cached(path, lambda path: Measurement(**read_json(path))):
        return cached
    neighbours = OtherPrograms()
    trial = make()
    release_freed_memory()
    if neighbours.are_busy(torch.get_num_threads()):
        warn(
            "other programs are keeping this machine busy, and each step waits for the slowest core: close "
            "them, or leave them "
            "a core with --threads. How fast it is will be tried again the next time"
        )
    else:
        write_cached(path, MEASUREMENTS, lambda beside: beside.write_text(format_json(asdict(trial))))
    return trial


def build_cache_key(what: dict, examples: Sequence[Example], settings: TrainConfig) -> str:
    """Of `what` is timed, how and where. Of the rows it has their mean length alone: others alike take as
    long.
    """
    choices = settings.model_dump(
        mode="json", include={"rank", "dropout", "targets", "low_memory", "batch_tokens"}
    )
    mean = f"{sum(map(input_length, examples)) / len(examples):.1e}"
    machine = {"processor": identify_processor("cpu"), "threads": torch.get_num_threads()}
    return compute_cache_key(what=what, choices=choices, mean_length=mean, machine=machine)


def measure_few_layers(
    decoder: Decoder, examples: Sequence[Example], settings: TrainConfig, precision: str, micro_tokens: int
) -> Measurement:
    batches = build_first_step(examples, settings, micro_tokens)
    fullest = max(batches, key=lambda batch: len(batch.input_ids))
    depths = sorted({min(depth, decoder.spec.layers) for depth in MEASURED_DEPTHS})
    shallow = [build_shallow_decoder(decoder, depth, settings, precision) for depth in depths]
    bytes_kept = [
        measure_activation_bytes(one, fullest) * micro_tokens / len(fullest.input_ids) for one in shallow
    ]
    train, validate = (time_per_token(shallow, batches, training) for training in (True, False))
    measured = torch.tensor(
        [train, validate, bytes_kept, list(map(compute_trainable_bytes, shallow))], dtype=torch.float64
    ).T
    # A model of one or two layers was measured whole: nothing is added to it.
    a_layer = (measured[-1] - measured[0]) / max(depths[-1] - depths[0], 1)
    # Another program may have disturbed the fewer layers so much that more of them took less time: then all
    # of it is theirs.
    a_layer[:2] = torch.where(a_layer[:2] > 0, a_layer[:2], measured[-1][:2] / depths[-1])
    whole = measured[0] + a_layer * (decoder.spec.layers - depths[0])
    train, validate, bytes_kept, trained = whole.tolist()
    inside = a_layer[2].item()
    if settings.low_memory:
        bytes_kept = decoder.spec.layers * micro_tokens * decoder.spec.hidden_size * 4 + inside
    unused = 0.0 if settings.low_memory else ALLOCATOR_OVERHEAD
    memory = compute_weight_bytes(decoder, precision) + trained + bytes_kept + inside + unused
    return Measurement(precision, micro_tokens, train, validate, memory, bytes_kept / micro_tokens)


def build_first_step(examples: Sequence[Example], settings: TrainConfig, micro_tokens: int) -> list[Batch]:
    batch_tokens = settings.batch_tokens or DEFAULT_BATCH_TOKENS
    groups = next(
        iterate_steps([input_length(row) for row in examples], batch_tokens, micro_tokens, settings.seed)
    )
    return [pack([examples[number] for number in group]) for group in groups]


def build_shallow_decoder(decoder: Decoder, depth: int, settings: TrainConfig, precision: str) -> Decoder:
    """A model of the decoder's first layers and its own head, with an adapter; in fp32 it shares the
    decoder's memory.
    """
    with torch.device("meta"):
        shallow = Decoder(replace(decoder.spec, layers=depth))
    weights = decoder.state_dict()
    shallow.load_state_dict({name: weights[name] for name in shallow.state_dict()}, assign=True)
    set_precision(shallow.requires_grad_(False), PRECISIONS[precision])
    add_lora(shallow, settings.rank, settings.alpha, settings.dropout, settings.targets)
    shallow.gradient_checkpointing = settings.low_memory
    return shallow.train()


def time_per_token(decoders: Sequence[Decoder], batches: list[Batch], training: bool) -> list[float]:
    """Seconds a token of each decoder for a forward pass over the batches, with its backward pass when
    training.

    They take turns: a slow moment of the machine then slows them all, and not the difference between two of
    them.
    """
    for decoder in decoders:
        run_batches(decoder, batches[:1], training)  # warms up
    best, spent = [math.inf] * len(decoders), 0.0
    while spent < MIN_TIMING_SECONDS * len(decoders):
        for number, decoder in enumerate(decoders):
            started = time.perf_counter()
            run_batches(decoder, batches, training)
            taken = time.perf_counter() - started
            best[number], spent = min(best[number], taken), spent + taken
    tokens = sum(len(batch.input_ids) for batch in batches)
    return [taken / tokens for taken in best]


def run_batches(decoder: Decoder, batches: list[Batch], training: bool) -> None:
    with nullcontext() if training else torch.inference_mode():
        for batch in batches:
            loss = target_loss(decoder, batch, packed_attention(batch.lengths))
            if training:
                loss.backward()


def measure_activation_bytes(decoder: Decoder, batch: Batch) -> int:
    """What a forward pass keeps for its backward pass, without gradient checkpointing."""
    kept, own = {}, {tensor.untyped_storage().data_ptr() for tensor in decoder.parameters()}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output that keeps itself would never be freed

    checkpointing, decoder.gradient_checkpointing = decoder.gradient_checkpointing, False
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = target_loss(decoder, batch, packed_attention(batch.lengths))
    decoder.gradient_checkpointing = checkpointing
    return sum(kept.values()) if loss.requires_grad else 0


def compute_trainable_bytes(decoder: Decoder) -> int:
    """The adapter, its gradient, and AdamW's two moments."""
    return 4 * sum(parameter.nbytes for parameter in trained_parameters(decoder))


def compute_weight_bytes(decoder: Decoder, precision: str) -> int:
    return sum(tensor.numel() for tensor in decoder.state_dict().values()) * PRECISIONS[precision].itemsize


def measure_memory_besides_weights(decoder: Decoder) -> int:
    """Bytes of the interpreter, the libraries and the data, once each page of the weights has been read from
    its file.
    """
    release_freed_memory()
    for tensor in decoder.state_dict().values():
        tensor.as_strided((math.ceil(tensor.numel() / 1024),), (1024,)).sum()
    return resident_memory() - compute_weight_bytes(decoder, "fp32")


def list_candidates(settings: TrainConfig, bf16_is_fast: bool) -> list[Candidate]:
    """What the settings leave open."""
    precisions = ["fp32", "bf16"] if bf16_is_fast else ["fp32"]
    sizes = sorted(
        {
            max(min(size, settings.batch_tokens or DEFAULT_BATCH_TOKENS), settings.max_tokens)
            for size in CANDIDATE_MICRO_TOKENS
        }
    )
    return [
        (precision, size)
        for precision in ([settings.precision] if settings.precision != "auto" else precisions)
        for size in ([settings.micro_tokens] if settings.micro_tokens else sizes)
    ]


def choose_measurement(measurements: list[Measurement], memory_limit: float) -> Measurement:
    """The fastest whose memory fits into `room` bytes. One within 10 % of it is as good: fp32 before bf16,
    then the smaller.
    """
    fitting = [trial for trial in measurements if trial.memory <= memory_limit] or [
        min(measurements, key=lambda trial: trial.memory)
    ]
    fastest = min(trial.train_seconds for trial in fitting)
    as_good = [trial for trial in fitting if trial.train_seconds <= 1.1 * fastest]
    return min(as_good, key=lambda trial: (trial.precision != "fp32", trial.micro_tokens))


def choose_batch_tokens(
    settings: TrainConfig, measurement: Measurement | None, examples: Sequence[Example]
) -> int:
    """As the settings say, or what suits the run's length; BATCH where nobody knows it."""
    tokens = math.inf
    if settings.budget and measurement:
        tokens = settings.budget / measurement.train_seconds
    elif settings.epochs:
        tokens = settings.epochs * sum(map(input_length, examples))
    return settings.batch_tokens or (
        SHORT_RUN_BATCH_TOKENS if tokens < SHORT_RUN_TOKENS else DEFAULT_BATCH_TOKENS
    )


def choose_val_rows(
    settings: TrainConfig, measurement: Measurement | None, examples: Sequence[Example]
) -> int:
    """As the settings say, or as many rows like these as a --budget can pay to measure twice; at least
    FEWEST_VAL_ROWS.
    """
    if settings.budget is None or measurement is None:
        return settings.val_rows
    a_row = measurement.validation_seconds * sum(map(input_length, examples)) / len(examples)
    payable = max(MIN_VAL_ROWS, int(VALIDATION_TIME_SHARE * settings.budget / (2 * a_row)))
    return payable if payable < min(settings.val_rows, len(examples)) else settings.val_rows


@dataclass(frozen=True)
class RunEstimate:
    steps: int
    seconds: float
    tokens_per_second: float
    peak_memory_mb: float

    def __str__(self) -> str:
        length = timedelta(seconds=round(self.seconds))
        return (
            f"about {self.steps:,} steps in {length} at {self.tokens_per_second:,.0f} tokens/s, "
            f"with about {self.peak_memory_mb / 1000:.1f} GB of memory"
        )


def estimate_run(
    measurement: Measurement,
    besides_weights: int,
    settings: TrainConfig,
    rule: StopRule,
    examples: Sequence[Example],
    val_examples: Sequence[Example],
) -> RunEstimate:
    """Of the whole run, validations included; what happens before its first step is left out."""
    lengths = [input_length(row) for row in examples]
    epoch = plan_epoch(lengths, settings.batch_tokens, settings.micro_tokens, settings.seed, 0)
    a_step = measurement.train_seconds * sum(lengths) / len(epoch)
    a_validation = measurement.validation_seconds * sum(map(input_length, val_examples))
    validating = a_validation * (1 + rule.count_affordable_validations(settings.validations, a_validation))
    steps = rule.steps or max(1, int((rule.seconds - validating) / a_step))
    most = max(sum(lengths[row] for row in group) for groups in epoch[:steps] for group in groups)
    memory = (
        besides_weights + measurement.memory - (measurement.micro_tokens - most) * measurement.token_memory
    )
    return RunEstimate(
        steps, steps * a_step + validating, 1 / measurement.train_seconds, round(memory / 1e6, 1)
    )
