"""A new architecture is one file and one line in a table."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from loratune.data.packing import pack
from loratune.errors import UserError
from loratune.models.adapter import load_adapter, save_adapter
from loratune.models.architectures import ARCHITECTURES, build_spec, list_supported
from loratune.models.architectures.llama import LLAMA
from loratune.models.load import build_decoder
from loratune.models.lora import adapter_parameters, add_lora
from loratune.models.peft_config import build_peft_config
from loratune.training.objective import ResponseNll
from loratune.training.step import adamw, train_step
from support.plain_lora import build_examples
from support.small_models import (
    GPT2_SHAPES,
    LLAMA_SHAPES,
    build_reference,
    compute_logits,
    convert_to_decoder,
)


class ToyConfig(LlamaConfig):
    """A Llama under another name."""

    model_type = "toy"


def test_new_architecture_computes_trains_and_saves(monkeypatch, tmp_path):
    model = build_reference(LLAMA_SHAPES["smollm2"])
    config = ToyConfig(**{key: value for key, value in model.config.to_dict().items() if key != "model_type"})
    with pytest.raises(UserError, match="'toy' is not supported; supported are gpt2"):
        build_spec(config)
    monkeypatch.setitem(ARCHITECTURES, "toy", LLAMA)
    decoder, ids = build_decoder(build_spec(config), model.state_dict()), torch.arange(50)
    with torch.no_grad():
        assert (compute_logits(decoder, ids) - model(ids[None]).logits[0]).abs().max() < 1e-4
    add_lora(decoder, rank=2, alpha=4, dropout=0.0, targets=["q_proj", "mlp"])
    train_step(
        decoder,
        adamw(decoder, 0.0),
        [pack(build_examples())],
        objective=ResponseNll(),
        learning_rate=1e-2,
        clip=1.0,
    )
    save_adapter(decoder, tmp_path, "toy")
    again = build_decoder(build_spec(config), model.state_dict())
    load_adapter(again, tmp_path)
    assert compute_logits(again, ids).equal(compute_logits(decoder, ids))


@pytest.mark.parametrize("name", GPT2_SHAPES | LLAMA_SHAPES)
def test_weight_map_is_one_to_one(name):
    model = AutoModelForCausalLM.from_config((GPT2_SHAPES | LLAMA_SHAPES)[name])
    architecture, decoder = ARCHITECTURES[model.config.model_type], convert_to_decoder(model)
    names = [name.rsplit(".", 1) for name in decoder.state_dict()]
    used = {f"{architecture.find_module(module).name}.{kind}" for module, kind in names}
    tied = {"lm_head.weight"} if decoder.spec.tied_head else set()
    assert len(used) == len(names) and used | tied == model.state_dict().keys()


@pytest.mark.parametrize(("name", "fan_in_fan_out"), [("cerebras-gpt", True), ("smollm2", False)])
def test_adapter_parameters_have_peft_names_in_a_fixed_order(name, fan_in_fan_out):
    decoder = convert_to_decoder(build_reference((GPT2_SHAPES | LLAMA_SHAPES)[name]))
    add_lora(decoder, rank=2, alpha=4, dropout=0.0, targets=["mlp"])
    names = list(adapter_parameters(decoder))
    assert all(name.startswith("base_model.model.") for name in names)
    assert [name.split(".")[-2] for name in names] == ["lora_A", "lora_B"] * (len(names) // 2)
    assert build_peft_config(decoder, "base")["fan_in_fan_out"] is fan_in_fan_out


def test_supported_architectures_are_listed_with_well_known_models():
    assert list_supported() == (
        "gpt2 (GPT-2, DistilGPT2, Cerebras-GPT), llama (SmolLM2, TinyLlama, Llama 3.2), mistral, qwen2, qwen3"
    )
