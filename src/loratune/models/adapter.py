"""Adapters on disk, in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`."""

import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from loratune.errors import UserError
from loratune.models.architectures import get_architecture
from loratune.models.decoder import Decoder
from loratune.models.lora import PEFT_PREFIX, Lora, adapter_parameters, named_linears, to_peft_name
from loratune.system.atomic import replace_atomically, write_json
from loratune.system.read import hash_file, read_json

ADAPTER_WEIGHTS_FILE, ADAPTER_CONFIG_FILE, ADAPTER_METADATA_FILE = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "loratune.json",
)
MLX_WEIGHTS_FILE = "adapters.safetensors"
# PEFT's names of the matrices. Files of other makers lack the prefix, or tell the adapter's name, too:
# lora_A.default.weight
MATRIX_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<layer>.+)\.lora_(?P<letter>[AB])(?:\.(?P<adapter>[^.]+))?\.weight"
)
OUTSIDE_BLOCKS = re.compile(
    r"lm_head|embed|\bwte\b|\bwpe\b|modules_to_save"
)  # in names of what lies outside the blocks
# Settings of PEFT's LoraConfig with which an adapter computes something else than W + s B A, or on another
# base.
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
# The ways to start that leave the base as it was. PiSSA, OLoRA, CorDA, LoRA-GA and LoftQ take something out
# of its weights.
SUPPORTED_INITS = (None, True, False, "gaussian", "orthogonal", "eva")
MAX_ALPHA = 1e6  # refuses infinity and NaN, too


def get_adapter_weights(decoder: Decoder) -> dict[str, torch.Tensor]:
    """Return the adapter's matrices by PEFT's names, as they are written to a file."""
    return {
        name: parameter.detach().cpu().contiguous() for name, parameter in adapter_parameters(decoder).items()
    }


def save_adapter(decoder: Decoder, folder: Path, base: str) -> None:
    """Write the two files, read the weights back and compare.

    Raises UserError for a full disk, and for an adapter with a non-finite number, of which nothing is
    written.
    """
    weights = get_adapter_weights(decoder)
    if broken := [name for name, matrix in weights.items() if not matrix.isfinite().all()]:
        raise UserError(
            f"the adapter has non-finite numbers in {broken[0]} and was not written; lower --learning-rate"
        )
    with replace_atomically(folder / ADAPTER_WEIGHTS_FILE) as beside:
        save_file(weights, beside, metadata={"format": "pt"})
        kept = load_file(beside)
        if kept.keys() != weights.keys() or not all(
            kept[name].equal(matrix) for name, matrix in weights.items()
        ):
            raise OSError(
                f"{folder / ADAPTER_WEIGHTS_FILE}: what was read back is not what was written; the disk may "
                "be failing"
            )
    write_json(folder / ADAPTER_CONFIG_FILE, build_peft_config(decoder, base))


def build_peft_config(decoder: Decoder, base: str) -> dict:
    adapted = [(name, linear.lora) for name, linear in named_linears(decoder) if linear.lora is not None]
    architecture = get_architecture(decoder.spec)
    lora: Lora = adapted[0][1]
    rank = lora.A.shape[0]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        # Some readers take a whole number only if it has no point.
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


def load_adapter(decoder: Decoder, folder: Path) -> None:
    """Put the adapter in `folder` on the decoder, whoever trained it; an adapter that is already there makes
    way.

    Raises UserError when it is missing or broken, made for another base, or of a kind that is not plain LoRA.
    """
    check_adapter_exists(folder)
    config = read_adapter_config(folder)
    weights = normalize_weight_names(read_adapter_weights(folder), folder)
    for name, linear in named_linears(decoder):
        layer = to_peft_name(decoder, name)
        a, b = weights.pop(f"{layer}.lora_A.weight", None), weights.pop(f"{layer}.lora_B.weight", None)
        if (a is None) != (b is None):
            raise UserError(
                f"--adapter {folder}: {ADAPTER_WEIGHTS_FILE} is broken: of {layer} only one of the two "
                "matrices is there"
            )
        if a is not None and not (a.dim() == b.dim() == 2 and a.numel() and b.numel()):
            raise UserError(
                f"--adapter {folder}: {ADAPTER_WEIGHTS_FILE} is broken: {layer} has no two matrices with "
                "numbers in them"
            )
        scale = None if a is None else compute_scale(config, layer, a.shape[0], folder)
        linear.lora = None if a is None else build_lora(a, b, linear.weight, scale, folder, layer)
    if outside := [name for name in weights if OUTSIDE_BLOCKS.search(name)]:
        raise UserError(
            f"--adapter {folder}: it changes the embedding or the head "
            f"({outside[0].removeprefix(PEFT_PREFIX)}), not only the "
            f"layers inside the blocks; {suggest_merge(config, folder)}"
        )
    if weights:
        raise UserError(
            f"--adapter {folder}: made for another base model, or for more than the linear layers inside its "
            "blocks: "
            f"this one has no place for {next(iter(weights))}"
        )
    if all(linear.lora is None for _, linear in named_linears(decoder)):
        raise UserError(f"--adapter {folder}: {ADAPTER_WEIGHTS_FILE} holds no adapter matrices")


def check_adapter_exists(folder: Path) -> None:
    """Raises UserError unless `folder` holds an adapter of PEFT's form; it says what is there instead."""
    config = read_json(folder / ADAPTER_CONFIG_FILE) if (folder / ADAPTER_CONFIG_FILE).is_file() else {}
    if (isinstance(config, dict) and "lora_parameters" in config) or has_only_mlx_weights(folder):
        raise UserError(
            f"--adapter {folder}: an adapter of MLX's form ({MLX_WEIGHTS_FILE}), which cannot be read; merge "
            "it into its base with "
            f"`mlx_lm.fuse --model BASE --adapter-path {folder} --save-path MERGED --dequantize`, and use it "
            "with --model MERGED"
        )
    if (folder / ADAPTER_CONFIG_FILE).is_file():
        return
    if inside := sorted(
        (path.parent for path in folder.glob(f"*/{ADAPTER_CONFIG_FILE}")), key=natural_sort_key
    ):
        others = f" (also there: {', '.join(path.name for path in inside[:-1])})" if inside[:-1] else ""
        raise UserError(
            f"--adapter {folder}: the adapter lies in a folder inside; name it with --adapter "
            f"{inside[-1]}{others}"
        )
    raise UserError(
        f"--adapter {folder}: no adapter there ({ADAPTER_CONFIG_FILE} is missing); train one with `loratune "
        "train`"
    )


def has_only_mlx_weights(folder: Path) -> bool:
    return (folder / MLX_WEIGHTS_FILE).is_file() and not (folder / ADAPTER_WEIGHTS_FILE).is_file()


def natural_sort_key(folder: Path) -> tuple[int, str]:
    """For checkpoint-500 to come before checkpoint-1000."""
    number = re.search(r"\d{1,18}$", folder.name)
    return int(number[0]) if number else -1, folder.name


def suggest_merge(config: dict, folder: Path) -> str:
    base = config.get("base_model_name_or_path") or "BASE"
    # The head and the embedding may be one matrix in the base. In the merged model they are two.
    return (
        "merge it into its base once with PEFT: `from peft import PeftModel; from torch.nn import Parameter; "
        "from transformers import AutoModelForCausalLM; base = "
        f"AutoModelForCausalLM.from_pretrained({base!r}); "
        "base.lm_head.weight = Parameter(base.lm_head.weight.clone()); base.config.tie_word_embeddings = "
        "False; "
        f"PeftModel.from_pretrained(base, {str(folder)!r}).merge_and_unload().save_pretrained('MERGED')`, "
        "copy the tokenizer "
        "into that folder, and use it with --model MERGED"
    )


def normalize_weight_names(weights: dict[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    """The matrices by PEFT's names; others as they are. Raises UserError where one place would get two."""
    found, adapters = {}, set()
    for name, matrix in weights.items():
        usual = name
        if match := MATRIX_NAME.fullmatch(name):
            usual = f"{PEFT_PREFIX}{match['layer']}.lora_{match['letter']}.weight"
            adapters.add(match["adapter"])
        if len(adapters) > 1:
            names = ", ".join(sorted(f"{adapter or 'one without a name'}" for adapter in adapters))
            raise UserError(
                f"--adapter {folder}: {ADAPTER_WEIGHTS_FILE} holds several adapters ({names}); save one of "
                "them to a folder of its own"
            )
        if usual in found:
            raise UserError(
                f"--adapter {folder}: {ADAPTER_WEIGHTS_FILE} is broken: it holds {usual} twice, with and "
                f"without {PEFT_PREFIX}"
            )
        found[usual] = matrix
    return found


def read_adapter_weights(folder: Path) -> dict[str, torch.Tensor]:
    if not (folder / ADAPTER_WEIGHTS_FILE).is_file():
        raise UserError(
            f"--adapter {folder}: {ADAPTER_WEIGHTS_FILE} is missing (pickled .bin adapters are refused; save "
            "it as safetensors)"
        )
    try:
        weights = load_file(folder / ADAPTER_WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise UserError(f"--adapter {folder}: {ADAPTER_WEIGHTS_FILE} cannot be read: {error}") from error
    if broken := [name for name, matrix in weights.items() if not matrix.isfinite().all()]:
        raise UserError(
            f"--adapter {folder}: {ADAPTER_WEIGHTS_FILE} has numbers that are not finite in {broken[0]}; "
            "train it again"
        )
    return weights


def read_adapter_config(folder: Path) -> dict:
    """Raises UserError for a broken file and for adapters that are not plain LoRA."""
    config = read_json(folder / ADAPTER_CONFIG_FILE)
    if not isinstance(config, dict):
        raise UserError(f"--adapter {folder}: {ADAPTER_CONFIG_FILE} must be a JSON object")
    if modules := config.get("modules_to_save"):
        raise UserError(
            f"--adapter {folder}: it holds whole layers (modules_to_save: {modules}); "
            f"{suggest_merge(config, folder)}"
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
        raise UserError(
            f"--adapter {folder}: only plain LoRA adapters can be used: in {ADAPTER_CONFIG_FILE}, "
            f"{', '.join(problems)}"
        )
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(map(is_valid_pattern, patterns)):
        raise UserError(
            f"--adapter {folder}: alpha_pattern must be an object with patterns of layers in "
            f"{ADAPTER_CONFIG_FILE}"
        )
    if not all(map(is_valid_alpha, (config.get("lora_alpha"), *patterns.values()))):
        raise UserError(
            f"--adapter {folder}: lora_alpha must be a number in {ADAPTER_CONFIG_FILE}, finite, as must "
            "those of alpha_pattern"
        )
    return config


def is_valid_alpha(value) -> bool:
    return type(value) in (int, float) and abs(value) < MAX_ALPHA


def is_valid_pattern(text: str) -> bool:
    try:
        return bool(compile_pattern(text))
    except re.error:
        return False


def compile_pattern(pattern: str) -> re.Pattern:
    """As PEFT reads the patterns of its configuration: the end of a layer's name, from a dot on, or the whole
    name.
    """
    return re.compile(rf"(.*\.)?({pattern})$")


def compute_scale(config: dict, layer: str, rank: int, folder: Path) -> float:
    """alpha / rank, or alpha / √rank for rank-stabilised LoRA (Kalajdzievski 2023; arXiv:2312.03732).

    A layer may have an alpha of its own. PEFT trains with that of the first pattern that matches, but sorts
    the patterns when it writes them: raises UserError where the order would decide.
    """
    name, patterns = layer.removeprefix(PEFT_PREFIX), config.get("alpha_pattern") or {}
    own = {alpha for pattern, alpha in patterns.items() if compile_pattern(pattern).match(name)}
    if len(own) > 1:
        alphas = " and ".join(f"{alpha:g}" for alpha in sorted(own))
        raise UserError(
            f"--adapter {folder}: alpha_pattern in {ADAPTER_CONFIG_FILE} gives {name} an alpha of {alphas}; "
            "leave one of them"
        )
    alpha = own.pop() if own else config["lora_alpha"]
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def build_lora(
    a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor, scale: float, folder: Path, layer: str
) -> Lora:
    width_out, width_in = weight.shape
    rank = a.shape[0]
    if a.shape != (rank, width_in) or b.shape != (width_out, rank):
        raise UserError(
            f"--adapter {folder}: made for another base model: {layer.removeprefix(PEFT_PREFIX)} is "
            f"{width_out} x {width_in} here, "
            f"but {b.shape[0]} x {a.shape[1]} in the adapter"
        )
    lora = Lora(width_in, width_out, rank, alpha=scale * rank, dropout=0.0)
    lora.scale = scale  # to the last bit
    lora.A.data, lora.B.data = a.float().to(weight.device), b.float().to(weight.device)
    return lora


def read_base_name(folder: Path) -> str | None:
    """What the adapter's own configuration calls its base: a name on the hub or a folder; None where it names
    none.
    """
    name = read_adapter_config(folder).get("base_model_name_or_path")
    return name if isinstance(name, str) and name.strip() else None


def read_adapter_metadata(folder: Path) -> dict:
    """`loratune.json` beside the adapter; empty for an adapter that another tool made.

    Raises UserError unless what other code relies on is of the right kind. The template checks itself where
    it is used.
    """
    path = folder / ADAPTER_METADATA_FILE
    facts = read_json(path) if path.is_file() else {}
    base = facts.get("base", {"name": "", "fingerprint": ""}) if isinstance(facts, dict) else None
    if not isinstance(base, dict) or not all(
        isinstance(base.get(name), str) for name in ("name", "fingerprint")
    ):
        raise UserError(f"{path}: broken: it must be an object whose base has a name and a fingerprint")
    if not isinstance(facts.get("files", {}), dict):
        raise UserError(f"{path}: broken: files must be an object with their sha256")
    prepared = facts.get("prepared", {})
    if not isinstance(prepared, dict) or type(prepared.get("fact_tokens", 1)) is not int:
        raise UserError(f"{path}: prepared: broken: it must be an object, and its fact_tokens a whole number")
    if not isinstance(facts.get("bos", False), bool):
        raise UserError(f"{path}: bos: broken: it must be true or false")
    return facts


def write_adapter_metadata(folder: Path, metadata: dict) -> None:
    """Write `loratune.json` for the adapter in `folder`."""
    told = metadata | {
        "files": {name: hash_file(folder / name) for name in (ADAPTER_WEIGHTS_FILE, ADAPTER_CONFIG_FILE)}
    }
    write_json(folder / ADAPTER_METADATA_FILE, json.loads(json.dumps(told, default=str)))


def check_adapter_files(folder: Path, metadata: dict) -> None:
    """Raises UserError unless the adapter is the one that its `loratune.json` describes."""
    files = metadata.get("files", {})  # another tool's adapter says nothing
    if others := [
        name
        for name in (ADAPTER_WEIGHTS_FILE, ADAPTER_CONFIG_FILE)
        if name in files and files[name] != hash_file(folder / name)
    ]:
        raise UserError(
            f"--adapter {folder}: {' and '.join(others)} and loratune.json are of different adapters: "
            "training was killed "
            "while it saved one over the other, or a file was changed since; go on with that run (loratune "
            "train --resume)"
        )
