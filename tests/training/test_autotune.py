"""Autotune: measurements of a few layers equal those of the whole model."""

import gc
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig

from loratune.config.train import TrainConfig
from loratune.data.packing import pack
from loratune.models.lora import add_lora
from loratune.models.ops import attention
from loratune.system import cache
from loratune.training import autotune
from loratune.training.autotune import (
    Measurement,
    build_shallow_decoder,
    choose_measurement,
    list_candidates,
    measure_activation_bytes,
    measure_all_layers,
    run_autotune,
)
from loratune.training.objective import target_nll
from loratune.training.schedule import StopRule
from loratune.training.setup.defaults import choose_batch_tokens, choose_val_rows
from support.plain_lora import MODELS, RANK, build_random_examples
from support.plans import make_step
from support.small_models import SMALL, build_reference, convert_to_decoder

ROOM = 9e9
STEP = make_step(rank=RANK)


def build_deep_decoder(layers: int):
    return convert_to_decoder(
        build_reference(
            LlamaConfig(**SMALL | {"num_hidden_layers": layers}, num_attention_heads=6, num_key_value_heads=2)
        )
    )


def build_rows() -> list:
    return build_random_examples([(7, 3), (1, 1), (20, 12), (4, 30), (11, 2)] * 4, 200)


def test_activation_bytes_are_linear_in_depth():
    decoder, batch = build_deep_decoder(7), pack(build_rows())
    two, four = (
        measure_activation_bytes(build_shallow_decoder(decoder, depth, STEP, precision="fp32"), batch)
        for depth in (2, 4)
    )
    add_lora(decoder, RANK, 32, dropout=0.0, targets=["all"])
    assert measure_activation_bytes(decoder, batch) == two + (four - two) / 2 * 5


def test_measured_activations_are_freed(monkeypatch):
    seen, blocks_of = [], attention.split_into_blocks

    def watched(lengths):
        for block in blocks_of(lengths):
            seen.append(weakref.ref(block))
            yield block

    monkeypatch.setattr(attention, "split_into_blocks", watched)
    assert measure_activation_bytes(
        build_shallow_decoder(build_deep_decoder(2), 2, STEP, precision="fp32"), pack(build_rows())
    )
    gc.collect()
    assert seen and all(block() is None for block in seen)


@pytest.mark.parametrize("layers", [1, 2, 3, 7])
def test_measurement_extrapolates_to_any_depth(layers, monkeypatch):
    monkeypatch.setattr(
        autotune, "time_per_token", lambda shallow, *_: [100.0 * one.spec.layers + 7 for one in shallow]
    )
    measurement = autotune.measure_few_layers(
        build_deep_decoder(layers), build_rows(), STEP, precision="fp32", micro_tokens=256
    )
    assert measurement.train_seconds == pytest.approx(100 * layers + 7)


def test_depths_are_timed_in_turns(monkeypatch):
    """By a clock on which a pass takes as many milliseconds as the model has layers, ten times as many in the
    first second.
    """
    clock = [0.0]

    def compute(decoder, batches, training):
        clock[0] += decoder.spec.layers * (0.01 if clock[0] < 1.0 else 0.001)

    monkeypatch.setattr(autotune, "run_batches", compute)
    monkeypatch.setattr(autotune, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    shallow = [
        build_shallow_decoder(build_deep_decoder(4), depth, STEP, precision="fp32") for depth in (2, 4)
    ]
    tokens = len(pack(build_rows()).input_ids)
    assert autotune.time_per_token(shallow, [pack(build_rows())], True) == pytest.approx(
        [0.002 / tokens, 0.004 / tokens]
    )


def test_disturbed_timing_never_gives_a_negative_time(monkeypatch, tmp_path):
    monkeypatch.setattr(
        autotune, "time_per_token", lambda shallow, *_: [{2: 9.0, 4: 4.0}[one.spec.layers] for one in shallow]
    )
    measurement = run_autotune(
        build_deep_decoder(7),
        build_rows(),
        STEP,
        candidates=[("fp32", 256), ("bf16", 256)],
        cache=tmp_path,
        memory_limit=ROOM,
    )
    assert measurement.train_seconds == measurement.validation_seconds == pytest.approx(9 + 5 * 4 / 4)


@pytest.mark.parametrize("name", MODELS)
def test_measuring_does_not_change_the_decoder(name, tmp_path):
    decoder = convert_to_decoder(build_reference(MODELS[name]))
    before = {key: tensor.clone() for key, tensor in decoder.state_dict().items()}
    for precision in ("fp32", "bf16"):
        measurement = run_autotune(
            decoder, build_rows(), STEP, candidates=[(precision, 256)], cache=tmp_path, memory_limit=ROOM
        )
        assert (measurement.precision, measurement.micro_tokens) == (precision, 256)
        assert measurement.train_seconds > 0 < measurement.memory
    after = decoder.state_dict()
    assert before.keys() == after.keys()
    assert all(before[key].equal(after[key]) and after[key].dtype == torch.float32 for key in before)


@pytest.fixture
def measured(monkeypatch) -> list:
    """The trials that were not in the cache."""
    measured = []

    def measure(*_, precision, micro_tokens):
        measured.append(precision)
        return Measurement(precision, micro_tokens, 1.0 if precision == "fp32" else 0.5, 1.0, 1.0, 0.0)

    monkeypatch.setattr(autotune, "measure_few_layers", measure)
    monkeypatch.setattr(autotune.OtherPrograms, "are_busy", lambda *_: False)
    return measured


def test_measurement_is_cached_per_machine_model_and_candidate(measured, tmp_path):
    decoder = build_deep_decoder(2)
    for choice in ("fp32", "fp32", "bf16", "fp32"):
        run_autotune(
            decoder, build_rows(), STEP, candidates=[(choice, 256)], cache=tmp_path, memory_limit=ROOM
        )
    assert measured == ["fp32", "bf16"]
    run_autotune(
        decoder,
        build_rows(),
        make_step(rank=64),
        candidates=[("fp32", 256)],
        cache=tmp_path,
        memory_limit=ROOM,
    )
    run_autotune(
        build_deep_decoder(3),
        build_rows(),
        STEP,
        candidates=[("fp32", 256)],
        cache=tmp_path,
        memory_limit=ROOM,
    )
    assert len(measured) == 4


ROWS = build_rows()


@pytest.mark.parametrize(
    "what",
    [
        "spec",
        "precision",
        "micro_tokens",
        "rank",
        "targets",
        "low_memory",
        "length",
        "processor",
        "threads",
        "code",
        "library",
    ],
)
def test_measurement_is_repeated_if_its_inputs_changed(measured, tmp_path, monkeypatch, what):
    def measure(
        layers: int = 2, precision: str = "fp32", micro_tokens: int = 256, rows: list = ROWS, **chosen
    ) -> None:
        run_autotune(
            build_deep_decoder(layers),
            rows,
            make_step(**chosen),
            candidates=[(precision, micro_tokens)],
            cache=tmp_path,
            memory_limit=ROOM,
        )

    measure()
    changed = {
        "spec": {"layers": 3},
        "precision": {"precision": "bf16"},
        "micro_tokens": {"micro_tokens": 512},
        "rank": {"rank": 64},
        "targets": {"targets": ("mlp",)},
        "low_memory": {"low_memory": True},
        "length": {"rows": build_random_examples([(60, 3)], 200)},
    }
    if what == "processor":
        monkeypatch.setattr(autotune, "identify_processor", lambda _: "another")
    if what == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    if what == "code":
        monkeypatch.setattr(cache, "hash_package_code", lambda: "another")
    if what == "library":
        monkeypatch.setattr(cache, "list_library_versions", dict)
    measure(**changed.get(what, {}))
    measure(**changed.get(what, {}))
    assert len(measured) == 2


def test_unused_cached_measurements_are_removed(measured, tmp_path, monkeypatch):
    monkeypatch.setattr(autotune, "MEASUREMENTS", replace(cache.MEASUREMENTS, max_files=2))
    for rank in (1, 2, 3):
        run_autotune(
            build_deep_decoder(2),
            build_rows(),
            make_step(rank=rank),
            candidates=[("fp32", 256)],
            cache=tmp_path,
            memory_limit=ROOM,
        )
    assert len(list(tmp_path.iterdir())) == 2


def test_measurement_on_a_busy_machine_is_not_cached(measured, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(autotune.OtherPrograms, "are_busy", lambda *_: True)
    for _ in range(2):
        run_autotune(
            build_deep_decoder(2),
            build_rows(),
            STEP,
            candidates=[("fp32", 256)],
            cache=tmp_path,
            memory_limit=ROOM,
        )
    assert len(measured) == 2 and not list(tmp_path.iterdir())
    assert "measured again next time" in capsys.readouterr().out


def test_measure_all_layers_replaces_the_times_and_keeps_the_decoder(measured, tmp_path, monkeypatch):
    decoder = build_deep_decoder(7)
    measurement = run_autotune(
        decoder,
        build_rows(),
        STEP,
        candidates=[("fp32", 256), ("bf16", 256)],
        cache=tmp_path,
        memory_limit=ROOM,
    )
    add_lora(decoder, RANK, 8, dropout=0.1, targets=["all"])
    before = {key: tensor.clone() for key, tensor in decoder.state_dict().items()}
    monkeypatch.setattr(autotune, "MIN_TIMING_SECONDS", 1e-6)
    whole = measure_all_layers(decoder, build_rows(), STEP, measurement=measurement, cache=tmp_path)
    assert (whole.precision, whole.memory) == ("bf16", measurement.memory)
    assert whole.validation_seconds > 0 and whole.train_seconds > 0
    assert whole.train_seconds != measurement.train_seconds
    assert all(before[key].equal(tensor) for key, tensor in decoder.state_dict().items())
    monkeypatch.setattr(autotune, "time_per_token", lambda *_: pytest.fail("it was in the cache"))
    assert measure_all_layers(decoder, build_rows(), STEP, measurement=measurement, cache=tmp_path) == whole


def test_only_open_settings_are_candidates():
    def candidates(batch_tokens: int, bf16_is_fast: bool, **chosen) -> list:
        free = {"precision": "auto", "micro_tokens": None, "max_tokens": 1024, "bf16_is_fast": bf16_is_fast}
        return list_candidates(make_step(batch_tokens=batch_tokens), **free | chosen)

    assert candidates(4096, True) == [("fp32", 1024), ("fp32", 2048), ("bf16", 1024), ("bf16", 2048)]
    assert candidates(4096, False) == [("fp32", 1024), ("fp32", 2048)]
    assert candidates(1024, True) == [("fp32", 1024), ("bf16", 1024)]
    assert candidates(1024, False, precision="bf16", micro_tokens=1024) == [("bf16", 1024)]
    assert candidates(1024, False) == [("fp32", 1024)]
    assert candidates(512, False) == [("fp32", 1024)]  # room for the longest example
    assert candidates(512, False, max_tokens=256) == [("fp32", 512)]


@pytest.mark.parametrize(
    ("choice", "batch"),
    [
        ({"budget": "639s"}, 512),
        ({"budget": "641s"}, 1024),
        ({"budget": "100s", "batch_tokens": 2048}, 2048),
        ({"epochs": 63}, 512),
        ({"epochs": 64}, 1024),
        ({"steps": 3}, 1024),
    ],
)
def test_short_run_uses_smaller_steps(choice, batch):
    # 100 tokens a row are fed.
    measurement, ten = (
        Measurement("fp32", 1024, 0.01, 0.002, 3e9, 0),
        build_random_examples([(90, 11)] * 10, 200),
    )
    settings = TrainConfig.validate_all(choice)
    assert choose_batch_tokens(settings, measurement, ten) == batch
    if settings.budget is None:
        assert choose_batch_tokens(settings, None, ten) == batch


@pytest.mark.parametrize(
    ("choice", "count"),
    [({"budget": "100s"}, 25), ({"budget": "1000s"}, 64), ({"budget": "1s"}, 8), ({"steps": 3}, 64)],
)
def test_val_rows_fit_a_tenth_of_the_budget_but_are_at_least_eight(choice, count):
    # 0.2 seconds a row.
    measurement, val_rows = (
        Measurement("fp32", 1024, 0.01, 0.002, 3e9, 0),
        build_random_examples([(90, 11)] * 64, 200),
    )
    settings = TrainConfig.validate_all(choice)
    assert choose_val_rows(settings, measurement, val_rows) == count


def test_budget_affords_the_validations_its_val_rows_were_chosen_for():
    assert StopRule(seconds=100).count_affordable_validations(10, 25 * 0.2) == 1  # besides the base's


def test_fastest_fitting_measurement_is_chosen_and_the_smaller_of_equals():
    slow, fast, large = (
        Measurement("fp32", 1024, 1.0, 1, 2e9, 0),
        Measurement("bf16", 1024, 0.5, 1, 3e9, 0),
        Measurement("bf16", 2048, 0.48, 1, 5e9, 0),
    )
    assert choose_measurement([slow, fast, large], memory_limit=9e9) is fast
    assert (
        choose_measurement(
            [slow, fast, Measurement("bf16", 2048, 0.4, 1, 5e9, 0)], memory_limit=9e9
        ).micro_tokens
        == 2048
    )
    assert choose_measurement([slow, fast, large], memory_limit=2.5e9) is slow
    assert choose_measurement([slow, fast, large], memory_limit=1e9) is slow
    assert (
        choose_measurement([Measurement("bf16", 1024, 0.95, 1, 1e9, 0), slow], memory_limit=9e9) is slow
    )  # no reason to be less exact


@pytest.mark.parametrize("dropout", [0.0, 0.1])  # two ways through a layer
@pytest.mark.parametrize("name", MODELS)
def test_gradient_checkpointing_gives_the_same_gradients_and_stores_no_inner_activations(name, dropout):
    batch = pack(build_rows())
    results, kept = [], []
    for low_memory in (False, True):
        decoder = convert_to_decoder(build_reference(MODELS[name]))
        add_lora(decoder, RANK, 8, dropout=dropout, targets=["all"])
        decoder.train().gradient_checkpointing = low_memory
        torch.manual_seed(1)
        shapes: set[tuple[int, ...]] = set()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, to=shapes: to.add(tuple(x.shape)) or x, lambda x: x
        ):
            loss = target_nll(decoder, batch).sum()
        loss.backward()
        kept.append((len(batch.input_ids), decoder.spec.intermediate_size) in shapes)
        results.append([loss.detach(), *(one.grad for one in decoder.parameters() if one.requires_grad)])
    assert all(one.equal(other) for one, other in zip(*results, strict=True))
    assert kept == [True, False]
