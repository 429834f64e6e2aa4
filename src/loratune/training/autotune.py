"""How fast training will be, and how large, before it begins: tried on real rows.

What a step costs is a + b x layers, in time and in memory. The first layer has nothing below it and the last one computes
the target rows only, so depths of 2 and 4 layers give a and b. That is enough to choose a precision and a micro-batch. What
was chosen is then timed with all layers: what a few of them compute with stays in the processor's caches.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch

from loratune.config.train import BATCH, FEWEST_VAL_ROWS, SHORT_BATCH, SHORT_RUN, TrainSettings
from loratune.data.example import Encoded
from loratune.data.packing import Batch, all_steps, epoch_steps, fed_tokens, pack
from loratune.errors import UserError
from loratune.models.decoder import Decoder
from loratune.models.load import PRECISIONS, set_precision
from loratune.models.lora import add_lora, trained_parameters
from loratune.models.ops.attention import packed_attention
from loratune.system.atomic import keep_newest, write_json
from loratune.system.cache import cache_key
from loratune.system.console import say, track, warn
from loratune.system.hardware import Neighbours, processor_kind
from loratune.system.memory import release_freed_memory, resident_memory
from loratune.system.read import read_json
from loratune.training.objective import target_loss
from loratune.training.schedule import VALIDATING, StopRule

Candidate = tuple[str, int]  # a precision, and tokens at once
DEPTHS = 2, 4
SIZES = 1024, 2048  # tokens at once that are tried
UNUSED = 0.3e9  # bytes that the allocator leaves between blocks, as measured with glibc
KEPT = 64  # trials in the cache; the ones not used for longest are removed
ENOUGH = 1.0  # seconds that a timing takes at least; the fastest of its repetitions counts


@dataclass(frozen=True)
class Trial:
    """What training costs with one choice of precision and micro-batch."""

    precision: str
    micro_tokens: int
    train_seconds: float  # per token
    validation_seconds: float  # per token
    memory: float  # bytes: the weights, the adapter, and all that training adds to them with so many tokens at once
    token_memory: float  # of these, what each token at once adds

    def __str__(self) -> str:
        return f"{self.precision} with {self.micro_tokens:,} tokens at once: {1 / self.train_seconds:,.0f} tokens/s"


def try_out(
    decoder: Decoder, rows: Sequence[Encoded], settings: TrainSettings, candidates: list[Candidate], cache: Path, room: float
) -> Trial:
    """The best of the candidates that needs at most `room` bytes.

    `decoder` is the base model in fp32, without an adapter; it stays as it is.
    """
    trials = []
    for precision, micro_tokens in track(candidates, "trying what is fastest here"):
        what = {"spec": asdict(decoder.spec), "precision": precision, "micro_tokens": micro_tokens, "layers": DEPTHS}
        trials.append(kept(cache, what, rows, settings, partial(few_layers, decoder, rows, settings, precision, micro_tokens)))
    best = chosen(trials, room)
    if len(trials) > 1:
        say(f"Tried on this machine: {'; '.join(map(str, trials))}. Taken: {best.precision}, {best.micro_tokens:,}.")
    return best


def with_all_layers(decoder: Decoder, rows: Sequence[Encoded], settings: TrainSettings, trial: Trial, cache: Path) -> Trial:
    """The trial with the times of the whole model, which `decoder` is, ready to be trained; it stays as it is."""

    def timed() -> Trial:
        batches = first_step(rows, settings, trial.micro_tokens)
        (train,), (validate,) = (fastest([decoder.train()], batches, training) for training in (True, False))
        return replace(trial, train_seconds=train, validation_seconds=validate)

    what = {"spec": asdict(decoder.spec), "precision": trial.precision, "micro_tokens": trial.micro_tokens, "layers": "all"}
    return kept(cache, what, rows, settings, timed)


def kept(cache: Path, what: dict, rows: Sequence[Encoded], settings: TrainSettings, make: Callable[[], Trial]) -> Trial:
    """A trial of `what` on this machine, for rows of about this length: from the cache, or made and put there.

    What was made while other programs kept the machine busy is not put there.
    """
    path = cache / f"trial-{key_of(what, rows, settings)}.json"
    with suppress(UserError, TypeError):  # it is not there, or broken
        trial = Trial(**read_json(path))
        with suppress(OSError):  # another user's cache may be read-only
            path.touch()
        return trial
    neighbours = Neighbours()
    trial = make()
    release_freed_memory()
    if neighbours.crowd(torch.get_num_threads()):
        warn(
            "other programs are keeping this machine busy, and each step waits for the slowest core: close them, or leave them "
            "a core with --threads. How fast it is will be tried again the next time"
        )
    else:
        with suppress(UserError, OSError):  # a full or read-only disk is no reason to stop
            write_json(path, asdict(trial))
            keep_newest(cache, "trial-*.json", KEPT)
    return trial


def key_of(what: dict, rows: Sequence[Encoded], settings: TrainSettings) -> str:
    """Of `what` is timed, how and where. Of the rows it has their mean length alone: others alike take as long."""
    choices = settings.model_dump(mode="json", include={"rank", "dropout", "targets", "low_memory", "batch_tokens"})
    mean = f"{sum(map(fed_tokens, rows)) / len(rows):.1e}"
    machine = {"processor": processor_kind("cpu"), "threads": torch.get_num_threads()}
    return cache_key(what=what, choices=choices, mean_length=mean, machine=machine)


def few_layers(decoder: Decoder, rows: Sequence[Encoded], settings: TrainSettings, precision: str, micro_tokens: int) -> Trial:
    batches = first_step(rows, settings, micro_tokens)
    fullest = max(batches, key=lambda batch: len(batch.ids))
    depths = sorted({min(depth, decoder.spec.layers) for depth in DEPTHS})
    shallow = [first_layers(decoder, depth, settings, precision) for depth in depths]
    bytes_kept = [kept_bytes(one, fullest) * micro_tokens / len(fullest.ids) for one in shallow]
    train, validate = (fastest(shallow, batches, training) for training in (True, False))
    measured = torch.tensor([train, validate, bytes_kept, list(map(trained_bytes, shallow))], dtype=torch.float64).T
    # A model of one or two layers was measured whole: nothing is added to it.
    a_layer = (measured[-1] - measured[0]) / max(depths[-1] - depths[0], 1)
    # Another program may have disturbed the fewer layers so much that more of them took less time: then all of it is theirs.
    a_layer[:2] = torch.where(a_layer[:2] > 0, a_layer[:2], measured[-1][:2] / depths[-1])
    whole = measured[0] + a_layer * (decoder.spec.layers - depths[0])
    train, validate, bytes_kept, trained = whole.tolist()
    inside = a_layer[2].item()
    if settings.low_memory:
        bytes_kept = decoder.spec.layers * micro_tokens * decoder.spec.width * 4 + inside
    unused = 0.0 if settings.low_memory else UNUSED
    memory = weight_bytes(decoder, precision) + trained + bytes_kept + inside + unused
    return Trial(precision, micro_tokens, train, validate, memory, bytes_kept / micro_tokens)


def first_step(rows: Sequence[Encoded], settings: TrainSettings, micro_tokens: int) -> list[Batch]:
    batch_tokens = settings.batch_tokens or BATCH
    groups = next(all_steps([fed_tokens(row) for row in rows], batch_tokens, micro_tokens, settings.seed))
    return [pack([rows[number] for number in group]) for group in groups]


def first_layers(decoder: Decoder, depth: int, settings: TrainSettings, precision: str) -> Decoder:
    """A model of the decoder's first layers and its own head, with an adapter; in fp32 it shares the decoder's memory."""
    with torch.device("meta"):
        shallow = Decoder(replace(decoder.spec, layers=depth))
    weights = decoder.state_dict()
    shallow.load_state_dict({name: weights[name] for name in shallow.state_dict()}, assign=True)
    set_precision(shallow.requires_grad_(False), PRECISIONS[precision])
    add_lora(shallow, settings.rank, settings.alpha, settings.dropout, settings.targets)
    shallow.low_memory = settings.low_memory
    return shallow.train()


def fastest(decoders: Sequence[Decoder], batches: list[Batch], training: bool) -> list[float]:
    """Seconds a token of each decoder for a forward pass over the batches, with its backward pass when training.

    They take turns: a slow moment of the machine then slows them all, and not the difference between two of them.
    """
    for decoder in decoders:
        compute(decoder, batches[:1], training)  # warms up
    best, spent = [math.inf] * len(decoders), 0.0
    while spent < ENOUGH * len(decoders):
        for number, decoder in enumerate(decoders):
            started = time.perf_counter()
            compute(decoder, batches, training)
            taken = time.perf_counter() - started
            best[number], spent = min(best[number], taken), spent + taken
    tokens = sum(len(batch.ids) for batch in batches)
    return [taken / tokens for taken in best]


def compute(decoder: Decoder, batches: list[Batch], training: bool) -> None:
    with nullcontext() if training else torch.inference_mode():
        for batch in batches:
            loss = target_loss(decoder, batch, packed_attention(batch.lengths))
            if training:
                loss.backward()


def kept_bytes(decoder: Decoder, batch: Batch) -> int:
    """What a forward pass keeps for its backward pass, without gradient checkpointing."""
    kept, own = {}, {tensor.untyped_storage().data_ptr() for tensor in decoder.parameters()}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output that keeps itself would never be freed

    checkpointing, decoder.low_memory = decoder.low_memory, False
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = target_loss(decoder, batch, packed_attention(batch.lengths))
    decoder.low_memory = checkpointing
    return sum(kept.values()) if loss.requires_grad else 0


def trained_bytes(decoder: Decoder) -> int:
    """The adapter, its gradient, and AdamW's two moments."""
    return 4 * sum(parameter.nbytes for parameter in trained_parameters(decoder))


def weight_bytes(decoder: Decoder, precision: str) -> int:
    return sum(tensor.numel() for tensor in decoder.state_dict().values()) * PRECISIONS[precision].itemsize


def memory_besides_weights(decoder: Decoder) -> int:
    """Bytes of the interpreter, the libraries and the data, once each page of the weights has been read from its file."""
    release_freed_memory()
    for tensor in decoder.state_dict().values():
        tensor.as_strided((math.ceil(tensor.numel() / 1024),), (1024,)).sum()
    return resident_memory() - weight_bytes(decoder, "fp32")


def candidates(settings: TrainSettings, bf16_is_fast: bool) -> list[Candidate]:
    """What the settings leave open."""
    precisions = ["fp32", "bf16"] if bf16_is_fast else ["fp32"]
    sizes = sorted({max(min(size, settings.batch_tokens or BATCH), settings.max_tokens) for size in SIZES})
    return [
        (precision, size)
        for precision in ([settings.precision] if settings.precision != "auto" else precisions)
        for size in ([settings.micro_tokens] if settings.micro_tokens else sizes)
    ]


def chosen(trials: list[Trial], room: float) -> Trial:
    """The fastest whose memory fits into `room` bytes. One within 10 % of it is as good: fp32 before bf16, then the smaller."""
    fitting = [trial for trial in trials if trial.memory <= room] or [min(trials, key=lambda trial: trial.memory)]
    fastest = min(trial.train_seconds for trial in fitting)
    as_good = [trial for trial in fitting if trial.train_seconds <= 1.1 * fastest]
    return min(as_good, key=lambda trial: (trial.precision != "fp32", trial.micro_tokens))


def batch_tokens_for(settings: TrainSettings, trial: Trial | None, rows: Sequence[Encoded]) -> int:
    """As the settings say, or what suits the run's length; BATCH where nobody knows it."""
    tokens = math.inf
    if settings.budget and trial:
        tokens = settings.budget / trial.train_seconds
    elif settings.epochs:
        tokens = settings.epochs * sum(map(fed_tokens, rows))
    return settings.batch_tokens or (SHORT_BATCH if tokens < SHORT_RUN else BATCH)


def val_rows_for(settings: TrainSettings, trial: Trial | None, rows: Sequence[Encoded]) -> int:
    """As the settings say, or as many rows like these as a --budget can pay to measure twice; at least FEWEST_VAL_ROWS."""
    if settings.budget is None or trial is None:
        return settings.val_rows
    a_row = trial.validation_seconds * sum(map(fed_tokens, rows)) / len(rows)
    payable = max(FEWEST_VAL_ROWS, int(VALIDATING * settings.budget / (2 * a_row)))
    return payable if payable < min(settings.val_rows, len(rows)) else settings.val_rows


@dataclass(frozen=True)
class Forecast:
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


def forecast(
    trial: Trial,
    besides_weights: int,
    settings: TrainSettings,
    rule: StopRule,
    rows: Sequence[Encoded],
    val_rows: Sequence[Encoded],
) -> Forecast:
    """Of the whole run, validations included; what happens before its first step is left out."""
    lengths = [fed_tokens(row) for row in rows]
    epoch = epoch_steps(lengths, settings.batch_tokens, settings.micro_tokens, settings.seed, 0)
    a_step = trial.train_seconds * sum(lengths) / len(epoch)
    a_validation = trial.validation_seconds * sum(map(fed_tokens, val_rows))
    validating = a_validation * (1 + rule.affordable(settings.validations, a_validation))
    steps = rule.steps or max(1, int((rule.seconds - validating) / a_step))
    most = max(sum(lengths[row] for row in group) for groups in epoch[:steps] for group in groups)
    memory = besides_weights + trial.memory - (trial.micro_tokens - most) * trial.token_memory
    return Forecast(steps, steps * a_step + validating, 1 / trial.train_seconds, round(memory / 1e6, 1))
