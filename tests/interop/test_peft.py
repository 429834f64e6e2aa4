"""Adapters are exchanged with PEFT in both directions, and both train with the same gradients."""

import dataclasses
import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loratune.errors import UserError
from loratune.models.adapter import get_adapter_weights, load_adapter, save_adapter
from loratune.models.load import load_model
from loratune.models.lora import add_lora, without_adapter
from loratune.models.peft_config import UNSUPPORTED_OPTIONS
from loratune.models.resolve import resolve_model
from support.small_models import (
    GPT2_SHAPES,
    LLAMA_SHAPES,
    build_reference,
    compute_logits,
    convert_to_decoder,
    randomise_lora,
    save_model,
)

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


@pytest.mark.parametrize(
    ("name", "targets"), [(name, targets) for name in MODELS for targets in TARGETS[name]]
)
@torch.no_grad()
def test_our_adapter_gives_the_same_logits_in_peft(name, targets, tmp_path):
    model = build_reference(MODELS[name])
    decoder = convert_to_decoder(model)
    base = compute_logits(decoder, IDS)
    add_lora(decoder, rank=4, alpha=8, dropout=0.0, targets=targets)
    randomise_lora(decoder)
    save_adapter(decoder, tmp_path, "some/base")
    tuned = compute_logits(decoder, IDS)
    with without_adapter(decoder):
        assert compute_logits(decoder, IDS).equal(base)
    there = PeftModel.from_pretrained(model, tmp_path).eval()
    assert (there(IDS[None]).logits[0] - tuned).abs().max() < 1e-4
    assert (tuned - base).abs().max() > 0.01


@pytest.mark.parametrize(("alpha", "rank"), [(32.0, 16), (10, 3), (4.0, 49), (0.1, 11), (2.5, 4)])
def test_alpha_is_written_as_given(alpha, rank, tmp_path):
    """Whole numbers without a point: some readers take no others, such as those in Go."""
    decoder = convert_to_decoder(build_reference(MODELS["llama"]))
    add_lora(decoder, rank=rank, alpha=alpha, dropout=0.0, targets=["q_proj"])
    save_adapter(decoder, tmp_path, "some/base")
    written = json.loads((tmp_path / "adapter_config.json").read_text())["lora_alpha"]
    assert written == alpha and isinstance(written, int) == (alpha % 1 == 0)
    there = PeftModel.from_pretrained(build_reference(MODELS["llama"]), tmp_path)
    assert there.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"] == alpha / rank
    load_adapter(decoder, tmp_path)
    assert decoder.layers[0].attention.query.lora.scale == alpha / rank


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}])
@pytest.mark.parametrize(("alpha", "rank"), [(4, 49), (7, 3)])
def test_adapter_scale_equals_peft_to_the_bit(alpha, rank, settings, tmp_path):
    there = trained_by_peft("llama", tmp_path, r=rank, lora_alpha=alpha, **settings)
    decoder = convert_to_decoder(build_reference(MODELS["llama"]))
    load_adapter(decoder, tmp_path)
    theirs = there.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"]
    assert decoder.layers[0].attention.query.lora.scale == theirs


def trained_by_peft(name, folder, **settings):
    """A random adapter of PEFT's on a small model, saved as PEFT saves it, and the model."""
    usual = {"r": 4, "lora_alpha": 6, "target_modules": PEFT_TARGETS[name], "init_lora_weights": False}
    config = LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=name == "gpt2", **usual | settings)
    torch.manual_seed(3)
    there = get_peft_model(build_reference(MODELS[name]), config).eval()
    for parameter_name, parameter in there.named_parameters():
        if "lora_" in parameter_name or parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    there.save_pretrained(folder)
    return there


COMPUTED = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "ranks of their own": {"rank_pattern": {"c_proj": 2, "o_proj": 8}},
    "ranks and alphas": {
        "rank_pattern": {r"0\.mlp\.\w+": 3},
        "alpha_pattern": {r".*\.0\.mlp\.(c_fc|up_proj)": 20, "c_attn": 1},
    },
    "alphas of one layer": {
        "alpha_pattern": {"^transformer.h.1.mlp.c_proj": 30, "model.layers.1.self_attn.o_proj": 30}
    },
    "alphas of no layer": {"alpha_pattern": {"proj": 30, "attn": 40}},  # ends of names, but not from a dot on
    "the same alpha twice": {
        "alpha_pattern": {"mlp.c_proj": 30, "c_proj": 30, "1.self_attn.q_proj": 2, "q_proj": 2}
    },
    "stabilised ranks and alphas": {
        "use_rslora": True,
        "rank_pattern": {"c_fc": 9},
        "alpha_pattern": {"c_fc": 2},
    },
    "some layers": {"layers_to_transform": [1]},
    "started at random": {"init_lora_weights": "gaussian"},
    "started orthogonal": {"init_lora_weights": "orthogonal"},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", COMPUTED.values(), ids=COMPUTED)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_peft_adapter_gives_the_same_logits_here(name, settings, tmp_path):
    there = trained_by_peft(name, tmp_path, **settings)
    decoder = convert_to_decoder(build_reference(MODELS[name]))
    base = compute_logits(decoder, IDS)
    load_adapter(decoder, tmp_path)
    tuned = compute_logits(decoder, IDS)
    assert (there(IDS[None]).logits[0] - tuned).abs().max() < 1e-4
    assert (tuned - base).abs().max() > 0.01


NOT_PLAIN = {
    "use_dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "bias": {"bias": "all"},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "trainable_token_indices": {"trainable_token_indices": [3, 4]},
    "alora_invocation_tokens": {"alora_invocation_tokens": [3, 4]},
    "init_lora_weights": {"init_lora_weights": "pissa"},
    "'olora'": {"init_lora_weights": "olora"},
    "c_proj an alpha of 2 and 30": {"alpha_pattern": {"mlp.c_proj": 30, "c_proj": 2}},
    r"the embedding or the head \(lm_head": {"target_modules": ["lm_head", "c_attn"]},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("message", "settings"), NOT_PLAIN.items(), ids=NOT_PLAIN)
def test_unsupported_adapter_is_refused_with_the_option(message, settings, tmp_path):
    trained_by_peft("gpt2", tmp_path, **settings)
    with pytest.raises(UserError, match=message):
        load_adapter(convert_to_decoder(build_reference(MODELS["gpt2"])), tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_adapter_with_unknown_matrices_is_refused(tmp_path):
    """As one of a base with more layers: those that do fit are not enough."""
    trained_by_peft("gpt2", tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    weights = load_file(path)
    surplus = {
        name.replace(".h.1.", ".h.7."): matrix.clone() for name, matrix in weights.items() if ".h.1." in name
    }
    assert surplus
    save_file(weights | surplus, path)
    with pytest.raises(UserError, match=r"this one has no place for base_model\.model\.transformer\.h\.7\."):
        load_adapter(convert_to_decoder(build_reference(MODELS["gpt2"])), tmp_path)


def test_every_field_of_pefts_lora_config_is_classified():
    """Those of a new version of PEFT are to be looked at: computed, refused, or without effect on a trained
    adapter.
    """
    read_elsewhere = {"peft_type", "bias", "init_lora_weights", "lora_alpha", "alpha_pattern", "use_rslora"}
    in_the_weights = {
        "r",
        "rank_pattern",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
    }
    of_training = {
        "lora_dropout",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "velora_config",
    }
    of_the_model = {
        "fan_in_fan_out",
        "megatron_config",
        "megatron_core",
        "qalora_group_size",
        "ensure_weight_tying",
    }
    notes = {
        "task_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
    }
    harmless = in_the_weights | of_training | of_the_model | notes | {"runtime_config"}
    known = read_elsewhere | harmless | set(UNSUPPORTED_OPTIONS)
    assert {field.name for field in dataclasses.fields(LoraConfig)} == known


def test_saved_adapter_loads_unchanged(tmp_path):
    first, second = (convert_to_decoder(build_reference(MODELS["llama"])) for _ in range(2))
    add_lora(first, rank=3, alpha=5, dropout=0.1, targets=["all"])
    randomise_lora(first)
    save_adapter(first, tmp_path, "some/base")
    load_adapter(second, tmp_path)
    kept = get_adapter_weights(second)
    assert all(kept[name].equal(matrix) for name, matrix in get_adapter_weights(first).items())
    assert compute_logits(first.eval(), IDS).equal(compute_logits(second, IDS))


def test_adapter_of_another_base_is_refused(tmp_path):
    decoder = convert_to_decoder(build_reference(MODELS["llama"]))
    add_lora(decoder, rank=3, alpha=5, dropout=0.0, targets=["all"])
    save_adapter(decoder, tmp_path, "some/base")
    with pytest.raises(UserError, match="made for another base model"):
        load_adapter(convert_to_decoder(build_reference(MODELS["gpt2"])), tmp_path)
    with pytest.raises(UserError, match=r"made for another base model: .* is 96 x 48 here"):
        load_adapter(convert_to_decoder(build_reference(LLAMA_SHAPES["qwen3"])), tmp_path)


def changed_config(folder, **settings):
    """An adapter of ours on disk, with other settings in PEFT's file."""
    decoder = convert_to_decoder(build_reference(MODELS["gpt2"]))
    add_lora(decoder, rank=3, alpha=5, dropout=0.0, targets=["all"])
    save_adapter(decoder, folder, "some/base")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


OTHERS = [
    *((name, [1]) for name in UNSUPPORTED_OPTIONS),
    ("peft_type", "IA3"),
    ("bias", "all"),
    ("init_lora_weights", "loftq"),
]


@pytest.mark.parametrize("setting", OTHERS)
def test_other_kinds_of_adapter_are_refused(setting, tmp_path):
    changed_config(tmp_path, **dict([setting]))
    with pytest.raises(UserError, match=setting[0]):
        load_adapter(convert_to_decoder(build_reference(MODELS["gpt2"])), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_alpha": float("nan")}, "lora_alpha must be a finite number"),
        ({"alpha_pattern": {"c_fc": "4"}}, "lora_alpha must be a finite number"),
        ({"alpha_pattern": ["c_fc"]}, "alpha_pattern must be an object"),
        ({"alpha_pattern": {"c_fc(": 4}}, "alpha_pattern must be an object"),
        ({"alpha_pattern": {"(?i)C_FC": 4}}, "alpha_pattern must be an object"),
    ],
)
def test_invalid_alpha_is_refused(settings, message, tmp_path):
    changed_config(tmp_path, **settings)
    with pytest.raises(UserError, match=message):
        load_adapter(convert_to_decoder(build_reference(MODELS["gpt2"])), tmp_path)


def test_non_finite_adapter_is_never_written(tmp_path):
    decoder = convert_to_decoder(build_reference(MODELS["gpt2"]))
    add_lora(decoder, rank=3, alpha=5, dropout=0.0, targets=["all"])
    decoder.layers[1].mlp.up.lora.B.data[0, 0] = float("nan")
    with pytest.raises(UserError, match="non-finite"):
        save_adapter(decoder, tmp_path / "adapter", "some/base")
    assert not (tmp_path / "adapter").exists()


def test_unknown_target_is_refused():
    with pytest.raises(UserError, match=r"no q_proj; choose from .*attn\.c_attn"):
        add_lora(
            convert_to_decoder(build_reference(MODELS["gpt2"])),
            rank=3,
            alpha=5,
            dropout=0.0,
            targets=["q_proj"],
        )


HEADS = {
    "a whole head": {"modules_to_save": ["lm_head"]},
    "a whole embedding": {"modules_to_save": ["embed_tokens"]},
    "both": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "a LoRA on the head": {"target_modules": ["lm_head", "q_proj"]},
    "a LoRA on the embedding": {"target_modules": ["embed_tokens", "q_proj"]},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_adapter_of_head_or_embedding_is_refused_and_the_remedy_works(settings, tied, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "base", LLAMA_SHAPES["smollm2" if tied else "tinyllama"])
    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained("base")
    usual = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj"], "init_lora_weights": False}
    there = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **usual | settings)).eval()
    for parameter in there.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    there.save_pretrained("adapter")
    with pytest.raises(UserError, match=r"changes the embedding or the head|holds whole layers") as refused:
        load_adapter(load_model(resolve_model("base")).decoder, tmp_path / "adapter")
    exec(str(refused.value).split("`")[1])
    for file in (tmp_path / "base").glob("tokenizer*"):
        shutil.copy(file, "MERGED")
    merged = load_model(resolve_model("MERGED")).decoder
    assert (there(IDS[None]).logits[0] - compute_logits(merged, IDS)).abs().max() < 1e-4


@pytest.mark.filterwarnings("ignore")
def test_adapter_saved_with_its_embedding_is_refused(tmp_path):
    there = trained_by_peft("llama", tmp_path)
    there.save_pretrained(tmp_path, save_embedding_layers=True)
    with pytest.raises(
        UserError, match=r"changes the embedding or the head \((model\.embed_tokens|lm_head)\.weight\)"
    ):
        load_adapter(convert_to_decoder(build_reference(MODELS["llama"])), tmp_path)


def renamed(folder, rename) -> None:
    """The adapter in `folder` with other names of its matrices; `rename` may give a matrix several."""
    path = folder / "adapter_model.safetensors"
    save_file({new: matrix.clone() for old, matrix in load_file(path).items() for new in rename(old)}, path)


NAMES = {
    "with the adapter's name": lambda name: [name.replace(".weight", ".default.weight")],
    "without the prefix": lambda name: [name.removeprefix("base_model.model.")],
    "with the name and without the prefix": lambda name: [
        name.removeprefix("base_model.model.").replace(".weight", ".mine.weight")
    ],
    "some with and some without the prefix": lambda name: [
        name.removeprefix("base_model.model.") if "_A" in name else name
    ],
}


@pytest.mark.parametrize("rename", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_adapter_names_of_other_tools_are_understood(name, rename, tmp_path):
    there = trained_by_peft(name, tmp_path)
    renamed(tmp_path, rename)
    decoder = convert_to_decoder(build_reference(MODELS[name]))
    load_adapter(decoder, tmp_path)
    assert (there(IDS[None]).logits[0] - compute_logits(decoder, IDS)).abs().max() < 1e-4


SEVERAL = {
    r"several adapters \(default, mine\)": lambda name: [
        name.replace(".weight", f".{adapter}.weight") for adapter in ("default", "mine")
    ],
    r"several adapters \(mine, one without a name\)": lambda name: [
        name,
        name.replace(".weight", ".mine.weight"),
    ],
    "twice, with and without base_model.model.": lambda name: [name, name.removeprefix("base_model.model.")],
}


@pytest.mark.parametrize(("message", "rename"), SEVERAL.items(), ids=SEVERAL)
def test_two_matrices_for_one_layer_are_refused(message, rename, tmp_path):
    trained_by_peft("llama", tmp_path)
    renamed(tmp_path, rename)
    with pytest.raises(UserError, match=message):
        load_adapter(convert_to_decoder(build_reference(MODELS["llama"])), tmp_path)
