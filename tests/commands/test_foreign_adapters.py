"""Adapters that other tools made: which base they need, and what a folder holds that is no adapter of PEFT's
form.
"""

import json
import shutil

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from loratune.models import resolve
from loratune.models.resolve import find_bundled_name
from support.evaluating import evaluate, measured
from support.small_models import save_model

pytestmark = pytest.mark.filterwarnings("ignore")
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def train_elsewhere(place, *names: str) -> None:
    """Adapters of PEFT's for the base, each in the folder of its name."""
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained("base"), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    model.save_pretrained("theirs")
    if names == ("default",):
        assert (place / "theirs" / "adapter_config.json").is_file()


def name_base(place, name) -> None:
    path = place / "theirs" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": name}))


def told(capsys) -> str:
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def test_the_base_is_the_one_that_the_adapter_names(place, capsys):
    train_elsewhere(place, "default")
    named = measured(place, "--adapter", "theirs")
    assert "Base model: base, which theirs/adapter_config.json names." in told(capsys)
    assert measured(place, "--adapter", "theirs", "--model", "base") == named
    assert "which theirs/adapter_config.json names" not in told(capsys)


def test_a_base_that_is_not_at_hand_is_named(place, capsys):
    train_elsewhere(place, "default")
    name_base(place, "/home/somebody/model")
    assert evaluate("--adapter", "theirs") == 2
    problem = "--adapter theirs: its base model is not available; name it with --model"
    assert f"{problem} (--model /home/somebody/model: there is no such folder)" in told(capsys)
    assert evaluate("--adapter", "theirs", "--model", "base") == 0


@pytest.mark.parametrize("name", [None, "", " ", 5, ["base"]])
def test_an_adapter_that_names_no_base_says_so(place, capsys, name):
    train_elsewhere(place, "default")
    name_base(place, name)
    assert evaluate("--adapter", "theirs") == 2
    assert "--adapter theirs: it does not say which base model it needs" in told(capsys)
    assert evaluate("--adapter", "theirs", "--model", "base") == 0


def test_the_bundled_model_stands_for_the_original_where_that_is_not_at_hand(monkeypatch, tmp_path):
    monkeypatch.setattr(resolve, "find_bundled_file", lambda name: tmp_path)
    assert find_bundled_name(HUB_NAME) == "smollm2-135m"
    assert find_bundled_name("HuggingFaceTB/SmolLM2-135M") is None
    with monkeypatch.context() as patch:
        patch.setattr(resolve.hub, "find_cached_file", lambda *_: tmp_path)
        assert find_bundled_name(HUB_NAME) is None
    monkeypatch.setattr(resolve, "find_bundled_file", lambda name: None)
    assert find_bundled_name(HUB_NAME) is None


def test_adapters_that_name_different_bases_are_not_mixed(place, capsys):
    train_elsewhere(place, "default")
    shutil.copytree(place / "theirs", place / "others")
    name_base(place, "another")
    assert evaluate("--adapter", "others", "theirs") == 2
    assert "--adapter theirs: adapter_config.json names another base model, another, than base" in told(
        capsys
    )
    assert evaluate("--adapter", "others", "theirs", "--model", "base") == 0


def test_an_adapter_in_a_folder_inside_is_found_for_the_user(place, capsys):
    train_elsewhere(place, "mine")
    assert evaluate("--adapter", "theirs") == 2
    message = told(capsys)
    assert "--adapter theirs: the adapter is in a subfolder; name it with --adapter theirs/mine" in message
    assert evaluate(*message.partition("name it with ")[2].split()) == 0


def test_of_several_checkpoints_the_last_is_named(place, capsys):
    train_elsewhere(place, "default")
    for step in (500, 1000, 90):
        shutil.copytree(place / "theirs", place / "trainer" / f"checkpoint-{step}")
    assert evaluate("--adapter", "trainer") == 2
    expected = "name it with --adapter trainer/checkpoint-1000 (also there: checkpoint-90, checkpoint-500)"
    assert expected in told(capsys)


@pytest.mark.parametrize("config", [True, False])
def test_an_adapter_of_mlx_is_called_by_its_name(place, capsys, config):
    (place / "theirs").mkdir()
    (place / "theirs" / "adapters.safetensors").write_bytes(b"")
    if config:
        mlx = {
            "fine_tune_type": "lora",
            "lora_parameters": {"rank": 8, "scale": 20.0},
            "num_layers": 16,
            "model": "base",
        }
        (place / "theirs" / "adapter_config.json").write_text(json.dumps(mlx))
    assert evaluate("--adapter", "theirs") == 2
    message = told(capsys)
    assert (
        "--adapter theirs: an adapter in MLX's format" in message
        and "mlx_lm.fuse --model BASE --adapter-path theirs" in message
    )


def test_a_whole_model_is_no_adapter(place, capsys):
    save_model(place / "theirs")
    assert evaluate("--adapter", "theirs") == 2
    assert "--adapter theirs: no adapter there (adapter_config.json is missing)" in told(capsys)
