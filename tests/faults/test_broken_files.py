"""Broken weights, tokenizers and rows are reported before they do harm."""

import json
import math
import shutil
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from loratune.data.example import Example
from loratune.data.packing import pack
from loratune.models.gguf.importer import move_into_place
from loratune.models.load import read_weights
from loratune.training import loop
from loratune.training.objective import ResponseNll
from loratune.training.validate import compute_validation_loss
from support.faults import assert_refused
from support.small_models import GPT2_SHAPES, save_model
from support.training_runs import TRAIN, load_adapter_tensors, train

ONE = ["--steps", "3", "--run", "one", "--out", "tuned"]
UP = "model.layers.1.mlp.up_proj.weight"
EVALUATE = ["evaluate", "--adapter", "adapter", "--generate", "0"]


def with_header(content: bytes, length: int) -> bytes:
    return struct.pack("<Q", length) + content[8:]


def with_offsets(content: bytes) -> bytes:
    """The header promises more of the last tensor than there is."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    last = max(
        (name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"]
    )
    header[last]["data_offsets"][1] += 400
    header[last]["shape"][0] += 100
    error = json.dumps(header).encode()
    return struct.pack("<Q", len(error)) + error + content[8 + length :]


HARMED = {
    "half of it": lambda content: content[: len(content) // 2],
    "no last byte": lambda content: content[:-1],
    "nothing": lambda content: b"",
    "half a header": lambda content: content[:100],
    "a header of 2^63 bytes": lambda content: with_header(content, 2**63),
    "a header longer than the file": lambda content: with_header(content, len(content)),
    "a header of no bytes": lambda content: with_header(content, 0),
    "tensors beyond the end": with_offsets,
    "no safetensors at all": lambda content: b"\x80\x04." + content,
}


@pytest.mark.parametrize("harm", HARMED)
def test_broken_safetensors_are_refused(place, capsys, harm):
    path = place / "base" / "model.safetensors"
    path.write_bytes(HARMED[harm](path.read_bytes()))
    error = assert_refused(capsys, *TRAIN, *ONE)
    assert "--model base: the model cannot be read" in error and "download or copy its files again" in error
    assert not (place / "runs").exists()


@pytest.mark.parametrize("harm", HARMED)
def test_broken_adapter_is_refused(place, capsys, harm):
    path = place / "adapter" / "adapter_model.safetensors"
    path.write_bytes(HARMED[harm](path.read_bytes()))
    assert "--adapter adapter: adapter_model.safetensors cannot be read" in assert_refused(capsys, *EVALUATE)


def change(folder, name: str, changed) -> None:
    """Put `changed(tensor)` in the place of a tensor; None leaves it out."""
    (path,) = folder.glob("*.safetensors")
    weights = load_file(path)
    weights[name] = changed(weights[name])
    save_file(
        {name: tensor for name, tensor in weights.items() if tensor is not None},
        path,
        metadata={"format": "pt"},
    )


def spoil(number: float):
    def spoiled(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[7] = number
        return tensor

    return spoiled


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda tensor: None, f"lack 1 of the model's weights, such as {UP}"),
        (lambda tensor: tensor[:-1].clone(), "the model cannot be read"),
        (spoil(float("nan")), f"the weights have non-finite numbers in {UP}"),
        (spoil(float("-inf")), f"the weights have non-finite numbers in {UP}"),
    ],
    ids=["missing", "another shape", "nan", "infinite"],
)
def test_broken_tensor_is_refused(place, capsys, changed, message):
    change(place / "base", UP, changed)
    assert message in assert_refused(capsys, *TRAIN, *ONE)


def test_large_weights_count_as_finite(place):
    """Their sum is not."""
    change(place / "base", "model.embed_tokens.weight", lambda tensor: torch.full_like(tensor, 3e38))
    assert (read_weights(place / "base")[1]["model.embed_tokens.weight"] == 3e38).all()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_non_finite_value_in_an_adapter_is_refused(place, capsys, number):
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    change(place / "adapter", name, spoil(number))
    assert f"non-finite numbers in {name}" in assert_refused(capsys, *EVALUATE)


def other_tokenizer(place, shuffled: list[int]) -> None:
    path = place / "base" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokens = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = dict(zip(tokens, [0, *shuffled], strict=True))
    path.write_text(json.dumps(tokenizer))


def test_tokenizer_with_more_tokens_than_the_model_is_refused(place, capsys):
    other_tokenizer(place, list(range(2, 258)))
    assert (
        "its tokenizer has ids up to 257, the model only up to 256; they do not belong together"
        in assert_refused(capsys, *TRAIN, *ONE)
    )


@pytest.mark.parametrize(("nll", "warnings"), [(math.log(257) - 0.01, 0), (math.log(257) + 0.01, 1)])
def test_base_that_predicts_worse_than_chance_is_warned_about(place, capsys, monkeypatch, nll, warnings):
    monkeypatch.setattr(loop, "compute_validation_loss", lambda *_: nll)
    assert train(*ONE) == 0
    assert (
        capsys.readouterr().out.count("worse than chance: is the tokenizer in its folder another model's?")
        == warnings
    )


def test_smollm2_with_a_wrong_tokenizer_predicts_worse_than_chance(smollm2):
    """Of as many tokens: the ids mean something else."""
    others = np.random.default_rng(0).permutation(smollm2.decoder.spec.vocab_size)
    texts = (
        "Tell me about the capital of France.\n",
        "It is Paris, a city on the Seine. Many people see it each year.",
    )
    ids = smollm2.tokenizer.encode_batch(list(texts))
    right, wrong = (
        pack([Example(*parts, id="", source="")]) for parts in (ids, [others[part].tolist() for part in ids])
    )
    chance = math.log(smollm2.decoder.spec.vocab_size)
    assert (
        compute_validation_loss(smollm2.decoder, [right], ResponseNll())
        < chance / 2
        < chance
        < compute_validation_loss(smollm2.decoder, [wrong], ResponseNll())
    )


@pytest.mark.parametrize("file", ["tokenizer.json", "config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": "llama", "hidden_size": -1}'])
def test_broken_model_json_is_refused(place, capsys, file, content):
    (place / "base" / file).write_text(content)
    assert "base" in assert_refused(capsys, *TRAIN, *ONE)


def test_damaged_cached_model_is_reported_with_a_remedy(place, capsys, monkeypatch):
    monkeypatch.setenv("LORATUNE_CACHE", str(place / "cache"))
    shutil.copytree("base", "cache/gguf-0")
    change(place / "cache" / "gguf-0", UP, spoil(float("nan")))
    assert "remove this folder" in assert_refused(
        capsys, *TRAIN, *ONE, "--model", str(place / "cache" / "gguf-0")
    )


def test_two_processes_can_unpack_the_same_file(tmp_path):
    """The first one's folder stays, and the second takes it."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
        move_into_place(tmp_path / name, tmp_path / "folder")
    assert (tmp_path / "folder" / "config.json").read_text() == "first"


def test_records_with_a_non_finite_loss_are_reported(place, capsys):
    """Of this GPT-2, whose weights are all finite, the positions from 200 on overflow; only long records
    reach them.
    """
    save_model(place / "overflowing", GPT2_SHAPES["cerebras-gpt"])
    change(
        place / "overflowing",
        "transformer.wpe.weight",
        lambda tensor: tensor.index_fill(0, torch.arange(200, 1024), 3e38),
    )
    with open(place / "data" / "train.jsonl", "a") as file:
        for name in ("long-1", "long-2"):
            file.write(
                json.dumps({"id": name, "instruction": "Count.", "input": "", "output": "1 " * 100}) + "\n"
            )
    error = assert_refused(
        capsys, *TRAIN, "--model", "overflowing", "--epochs", "1", "--run", "one", "--out", "tuned"
    )
    assert "the loss is nan" in error and "on their own: long-" in error and "Inspect or remove them" in error
    assert not (place / "tuned").exists()
    assert all(
        matrix.isfinite().all() for matrix in load_adapter_tensors(newest(place / "runs" / "one")).values()
    )


def newest(run):
    return max((run / "checkpoints").iterdir())


def test_overflowed_adapter_is_never_written(place, capsys, monkeypatch):
    """The last step's gradient is finite, what it makes of the adapter is not."""
    original = loop.train_step

    def step(decoder, *arguments, **options):
        result = original(decoder, *arguments, **options)
        decoder.layers[0].mlp.up.lora.B.data[0, 0] = float("inf")
        return result

    monkeypatch.setattr(loop, "train_step", step)
    assert "is nan" in assert_refused(capsys, *TRAIN, "--steps", "1", "--run", "one", "--out", "tuned")
    assert not (place / "tuned").exists()
    assert all(
        matrix.isfinite().all() for matrix in load_adapter_tensors(newest(place / "runs" / "one")).values()
    )
