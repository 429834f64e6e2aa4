"""Build PEFT's `adapter_config.json` for our adapters, and read and check that of any other."""

import re
from pathlib import Path
from typing import Any

from loratune.errors import UserError
from loratune.models.architectures import get_architecture
from loratune.models.decoder import Decoder
from loratune.models.lora import PEFT_PREFIX, named_linears
from loratune.system.read import read_json

ADAPTER_CONFIG_FILE = "adapter_config.json"
# Options of PEFT's LoraConfig that make an adapter more than W + s B A, or change its base.
UNSUPPORTED_OPTIONS = (
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "lora_bias",
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
# Initialisations that leave the base as it was. PiSSA, OLoRA, CorDA, LoRA-GA and LoftQ change its weights.
SUPPORTED_INITS = (None, True, False, "gaussian", "orthogonal", "eva")
MAX_ALPHA = 1e6  # also refuses infinity and NaN


def build_peft_config(decoder: Decoder, base: str) -> dict[str, Any]:
    """Build the LoraConfig of the decoder's adapter, in the form that PEFT loads."""
    adapted = [(name, linear.lora) for name, linear in named_linears(decoder) if linear.lora is not None]
    architecture = get_architecture(decoder.spec)
    lora = adapted[0][1]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.A.shape[0],
        # Some readers accept a whole number only without a decimal point.
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted({architecture.linear_names[name.split(".", 2)[2]] for name, _ in adapted}),
        "fan_in_fan_out": architecture.fan_in_fan_out,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read an adapter's LoraConfig. Raises UserError if it is broken or not plain LoRA."""
    config = read_json(folder / ADAPTER_CONFIG_FILE)
    if not isinstance(config, dict):
        raise adapter_error(folder, f"{ADAPTER_CONFIG_FILE} must be a JSON object")
    if modules := config.get("modules_to_save"):
        raise adapter_error(
            folder,
            f"it holds whole layers (modules_to_save: {modules})",
            remedy=suggest_merge(config, folder),
        )
    problems = [f"{name} is {config[name]!r}" for name in UNSUPPORTED_OPTIONS if config.get(name)]
    if config.get("peft_type") != "LORA":
        problems.append(f"peft_type is {config.get('peft_type')!r}")
    if config.get("bias", "none") != "none":
        problems.append(f"bias is {config['bias']!r}")
    if config.get("init_lora_weights") not in SUPPORTED_INITS:
        problems.append(
            f"init_lora_weights is {config['init_lora_weights']!r} (PEFT can save such an adapter as plain "
            "LoRA)"
        )
    if problems:
        raise adapter_error(
            folder,
            f"only plain LoRA adapters can be used: in {ADAPTER_CONFIG_FILE}, {', '.join(problems)}",
        )
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(map(is_valid_pattern, patterns)):
        raise adapter_error(
            folder, f"alpha_pattern must be an object with patterns of layers in {ADAPTER_CONFIG_FILE}"
        )
    if not all(map(is_valid_alpha, (config.get("lora_alpha"), *patterns.values()))):
        raise adapter_error(
            folder,
            f"lora_alpha must be a finite number in {ADAPTER_CONFIG_FILE}, and so must the values of "
            "alpha_pattern",
        )
    return config


def is_valid_alpha(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < MAX_ALPHA


def is_valid_pattern(text: str) -> bool:
    try:
        return bool(compile_pattern(text))
    except re.error:
        return False


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern as PEFT reads it: it matches a layer's whole name, or its end after a dot."""
    return re.compile(rf"(.*\.)?({pattern})$")


def compute_scale(config: dict[str, Any], layer: str, rank: int, *, folder: Path) -> float:
    """Return alpha / rank, or alpha / √rank for rank-stabilised LoRA (Kalajdzievski 2023; arXiv:2312.03732).

    A layer may have its own alpha. PEFT trains with the first pattern that matches, but sorts the patterns
    when it writes them: raises UserError where the order would decide.
    """
    name, patterns = layer.removeprefix(PEFT_PREFIX), config.get("alpha_pattern") or {}
    own_alphas = {alpha for pattern, alpha in patterns.items() if compile_pattern(pattern).match(name)}
    if len(own_alphas) > 1:
        alphas = " and ".join(f"{alpha:g}" for alpha in sorted(own_alphas))
        raise adapter_error(
            folder,
            f"alpha_pattern in {ADAPTER_CONFIG_FILE} gives {name} an alpha of {alphas}",
            remedy="keep one of them",
        )
    alpha = own_alphas.pop() if own_alphas else config["lora_alpha"]
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def read_base_name(folder: Path) -> str | None:
    """Return the base model that the adapter's configuration names, a hub name or a folder; None if none."""
    name = read_adapter_config(folder).get("base_model_name_or_path")
    return name if isinstance(name, str) and name.strip() else None


def suggest_merge(config: dict[str, Any], folder: Path) -> str:
    """Return how to merge an adapter that changes more than linear layers into a model of its own."""
    base = config.get("base_model_name_or_path") or "BASE"
    # The head and the embedding may be one matrix in the base; in the merged model they are two.
    return (
        "merge it into its base once with PEFT: `from peft import PeftModel; from torch.nn import Parameter; "
        "from transformers import AutoModelForCausalLM; base = "
        f"AutoModelForCausalLM.from_pretrained({base!r}); "
        "base.lm_head.weight = Parameter(base.lm_head.weight.clone()); base.config.tie_word_embeddings = "
        "False; "
        f"PeftModel.from_pretrained(base, {str(folder)!r}).merge_and_unload().save_pretrained('MERGED')`, "
        "copy the tokenizer "
        "into that folder, and use it with `model` MERGED"
    )


def adapter_error(folder: Path, problem: str, remedy: str = "") -> UserError:
    """Build the error for a problem with the adapter in `folder`."""
    return UserError(problem, setting="adapter", value=folder, remedy=remedy)
