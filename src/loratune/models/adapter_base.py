"""The base model of an adapter: found by what the adapter says of it, and checked to be the same."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loratune.errors import Problem, UserError
from loratune.models.adapter import ADAPTER_CONFIG_FILE, ADAPTER_METADATA_FILE
from loratune.models.peft_config import adapter_error, read_base_name
from loratune.models.resolve import ResolvedModel, find_bundled_name, resolve_model
from loratune.models.tokenizer import Tokenizer
from loratune.system.messages import say, warn

# What a base model consists of besides its weights, by the names in loratune.json.
PARTS = {
    "config": "configuration (config.json)",
    "tokenizer": "tokenizer (its files or generation_config.json)",
}


def resolve_adapter_base(adapter: Path, metadata: Mapping[str, Any]) -> ResolvedModel:
    """Find the base model that the adapter was trained on.

    Args:
        adapter: its folder.
        metadata: its loratune.json; empty for another tool's adapter, whose base PEFT's file names.

    Raises:
        UserError: it does not say which one, or that one is not available.
    """
    name = metadata["base"]["name"] if "base" in metadata else read_peft_base_name(adapter)
    try:
        return resolve_model(name)
    except UserError as error:
        reason = "; ".join(problem.quote() for problem in error.details)
        raise adapter_error(
            adapter, "its base model is not available", remedy=f"name it with `model` ({reason})"
        ) from error


def read_peft_base_name(adapter: Path) -> str:
    """Return the base that adapter_config.json names, by the name that it has on this machine."""
    name = read_base_name(adapter)
    if name is None:
        raise adapter_error(
            adapter,
            f"it does not say which base model it needs (no {ADAPTER_METADATA_FILE}, and "
            f"{ADAPTER_CONFIG_FILE} has no base_model_name_or_path)",
            remedy="name it with `model`",
        )
    if bundled := find_bundled_name(name):
        say(
            f"Base model: {bundled}, the installed copy, in 4 bits, of {name}, which "
            f"{adapter / ADAPTER_CONFIG_FILE} names."
        )
        return bundled
    say(f"Base model: {name}, which {adapter / ADAPTER_CONFIG_FILE} names.")
    return name


def check_adapter_base(
    adapter: Path, metadata: Mapping[str, Any], base: ResolvedModel, *, is_chosen: bool
) -> None:
    """Raise UserError unless the adapter was made for this base.

    Weights must be the adapter's own. Another configuration or tokenizer may be meant, such as rotary
    positions that are scaled for longer texts: in a base that the user chose it is only warned of. Another
    tool's adapter knows its base by name alone, so there the user decides.

    Args:
        adapter: its folder.
        metadata: its loratune.json; empty for another tool's adapter.
        base: the base model.
        is_chosen: whether the user named it.
    """
    made_for = metadata.get("base")
    if not made_for:
        named = read_base_name(adapter)
        if not is_chosen and named not in (None, base.name, base.hub_name):
            raise adapter_error(
                adapter,
                f"{ADAPTER_CONFIG_FILE} names another base model, {named}, than {base.name}",
                remedy="evaluate it by itself, or name the base of all with `model`",
            )
        return
    if made_for["fingerprint"] != base.fingerprint:
        raise adapter_error(
            adapter,
            f"made for the base model {made_for['name']} (weights {made_for['fingerprint'][:12]}), "
            f"not for {base.name} (weights {base.fingerprint[:12]})",
            remedy="choose that base with `model`, or train a new adapter; adapters of different bases are "
            "evaluated one by one",
        )
    # Adapters of the first version say nothing of these parts.
    now = {"config": base.config, "tokenizer": base.tokenizer}
    changed = " and ".join(PARTS[name] for name in now if name in made_for and made_for[name] != now[name])
    if changed and is_chosen:
        problem = f"trained with another {changed} of {base.name}; with this one it may answer otherwise"
        warn(Problem(problem, "adapter", adapter).quote())
    elif changed:
        raise adapter_error(
            adapter,
            f"the {changed} of its base model {base.name} is another one now than when it was trained",
            remedy=f"bring that back, or use it as it is now by adding `model` {base.name}",
        )


def resolve_bos(
    tokenizer: Tokenizer, adapters: Sequence[Path], metadata: Sequence[Mapping[str, Any]]
) -> Tokenizer:
    """Return the tokenizer with or without BOS in front of prompts, as the adapters were trained.

    Raises:
        UserError: the adapters differ, or the tokenizer has no such token.
    """
    # An adapter that says nothing was trained by loratune before prompts began with BOS, or by a tool that
    # follows the configuration.
    with_bos = [one.get("bos", False) if one else bool(tokenizer.bos) for one in metadata]
    first = with_bos[0]
    for adapter, has_bos in zip(adapters, with_bos, strict=True):
        if has_bos != first:
            raise adapter_error(
                adapter,
                f"trained {describe_bos(has_bos)}, but {adapters[0]} {describe_bos(first)}",
                remedy="evaluate it by itself",
            )
    if first and not tokenizer.bos:
        raise adapter_error(
            adapters[0],
            f"trained {describe_bos(True)}, but this base's tokenizer puts none in front of a text (the "
            "post-processor in its tokenizer.json)",
            remedy="choose the folder that it was trained on with `model`",
        )
    if tokenizer.bos and not first:
        say(
            f"Prompts begin without a BOS token, although the tokenizer has one: {adapters[0]} was trained "
            "so."
        )
    return tokenizer if first else tokenizer.without_bos()


def describe_bos(has_bos: bool) -> str:
    return "with a BOS token in front of each prompt" if has_bos else "without a BOS token in front"
