"""Adapters are PEFT's: ours work there, theirs work here, and both train by the same gradients."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from loratune.errors import UserError
from loratune.models.adapter import adapter_weights, load_adapter, save_adapter
from loratune.models.lora import add_lora, without_adapter
from small_models import GPT2_SHAPES, LLAMA_SHAPES, logits, ours, randomise_lora, reference

MODELS = {"gpt2": GPT2_SHAPES["cerebras-gpt"], "llama": LLAMA_SHAPES["biases"]}
TARGETS = {
    "gpt2": [["all"], ["attention"], ["mlp.c_proj"]],
    "llama": [["all"], ["q_proj", "v_proj"], ["mlp"]],
}
PEFT_TARGETS = {
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
IDS = torch.arange(3, 90)


@pytest.mark.parametrize(("name", "targets"), [(name, targets) for name in MODELS for targets in TARGETS[name]])
@torch.no_grad()
def test_our_adapter_gives_the_same_logits_in_peft(name, targets, tmp_path):
    model = reference(MODELS[name])
    decoder = ours(model)
    base = logits(decoder, IDS)
    add_lora(decoder, rank=4, alpha=8, dropout=0.0, targets=targets)
    randomise_lora(decoder)
    save_adapter(decoder, tmp_path, "some/base")
    tuned = logits(decoder, IDS)
    with without_adapter(decoder):
        assert logits(decoder, IDS).equal(base)
    there = PeftModel.from_pretrained(model, tmp_path).eval()
    assert (there(IDS[None]).logits[0] - tuned).abs().max() < 1e-4
    assert (tuned - base).abs().max() > 0.01


@pytest.mark.parametrize("rank_stabilised", [False, True])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_peft_adapter_gives_the_same_logits_here(name, rank_stabilised, tmp_path):
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=PEFT_TARGETS[name],
        task_type="CAUSAL_LM",
        fan_in_fan_out=name == "gpt2",
        init_lora_weights=False,
        use_rslora=rank_stabilised,
    )
    decoder = ours(reference(MODELS[name]))
    there = get_peft_model(reference(MODELS[name]), config).eval()
    there.save_pretrained(tmp_path)
    load_adapter(decoder, tmp_path)
    assert (there(IDS[None]).logits[0] - logits(decoder, IDS)).abs().max() < 1e-4


def test_saved_adapter_comes_back_unchanged(tmp_path):
    first, second = (ours(reference(MODELS["llama"])) for _ in range(2))
    add_lora(first, rank=3, alpha=5, dropout=0.1, targets=["all"])
    randomise_lora(first)
    save_adapter(first, tmp_path, "some/base")
    load_adapter(second, tmp_path)
    kept = adapter_weights(second)
    assert all(kept[name].equal(matrix) for name, matrix in adapter_weights(first).items())
    assert logits(first.eval(), IDS).equal(logits(second, IDS))


def test_adapter_of_another_base_is_refused(tmp_path):
    decoder = ours(reference(MODELS["llama"]))
    add_lora(decoder, rank=3, alpha=5, dropout=0.0, targets=["all"])
    save_adapter(decoder, tmp_path, "some/base")
    with pytest.raises(UserError, match="made for another base model"):
        load_adapter(ours(reference(MODELS["gpt2"])), tmp_path)
    with pytest.raises(UserError, match=r"made for another base model: .* is 96 x 48 here"):
        load_adapter(ours(reference(LLAMA_SHAPES["qwen3"])), tmp_path)


@pytest.mark.parametrize(
    ("setting", "value"), [("use_dora", True), ("bias", "all"), ("peft_type", "IA3"), ("modules_to_save", ["lm_head"])]
)
def test_other_kinds_of_adapter_are_refused(setting, value, tmp_path):
    decoder = ours(reference(MODELS["gpt2"]))
    add_lora(decoder, rank=3, alpha=5, dropout=0.0, targets=["all"])
    save_adapter(decoder, tmp_path, "some/base")
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {setting: value}))
    with pytest.raises(UserError, match=setting):
        load_adapter(ours(reference(MODELS["gpt2"])), tmp_path)


def test_non_finite_adapter_is_never_written(tmp_path):
    decoder = ours(reference(MODELS["gpt2"]))
    add_lora(decoder, rank=3, alpha=5, dropout=0.0, targets=["all"])
    decoder.layers[1].mlp.up.lora.B.data[0, 0] = float("nan")
    with pytest.raises(UserError, match="non-finite"):
        save_adapter(decoder, tmp_path / "adapter", "some/base")
    assert not (tmp_path / "adapter").exists()


def test_target_that_the_model_does_not_have():
    with pytest.raises(UserError, match=r"no q_proj; choose from .*attn\.c_attn"):
        add_lora(ours(reference(MODELS["gpt2"])), rank=3, alpha=5, dropout=0.0, targets=["q_proj"])
