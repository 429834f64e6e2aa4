"""From an adapter folder to a base model with the adapter on it and the template that it was trained with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loratune.config.shared import AdapterConfig, BaseOverrideConfig
from loratune.data.template import Template, load_template
from loratune.errors import UserError
from loratune.models.adapter import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_METADATA_FILE,
    check_adapter_exists,
    check_adapter_files,
    load_adapter,
    read_adapter_metadata,
)
from loratune.models.decoder import Decoder
from loratune.models.load import load_model, mention_chat_template
from loratune.models.peft_config import read_base_name
from loratune.models.resolve import ResolvedModel, find_bundled_name, resolve_model
from loratune.models.tokenizer import Tokenizer
from loratune.system.console import describe_error, say, warn
from loratune.system.device import choose_device


@dataclass(frozen=True)
class TunedModel:
    """One base in memory; `models.lora.without_adapter(decoder)` gives the base's own answers."""

    decoder: Decoder
    tokenizer: Tokenizer
    template: Template
    base: ResolvedModel
    adapter: Path


def load_tuned_model(settings: AdapterConfig) -> TunedModel:
    """Raises UserError when the adapter or its base is missing or they do not belong together."""
    return load_tuned_models(settings, [settings.adapter])[0]


def load_tuned_models(settings: BaseOverrideConfig, adapters: Sequence[Path]) -> list[TunedModel]:
    """Several adapters for one base, whose decoder they share. The first is on it; `load_adapter` puts
    another in its place.

    Raises UserError when one is missing, or is of another base or template than the first, or begins prompts
    otherwise.
    """
    refuse_missing_adapters(adapters)
    facts = [read_adapter_metadata(adapter) for adapter in adapters]
    device = choose_device(settings.threads, settings.device)
    found = resolve_model(settings.model) if settings.model else find_adapter_base(facts[0], adapters[0])
    for adapter, of_adapter in zip(adapters, facts, strict=True):
        refuse_mismatched_base(of_adapter, found, adapter, chosen=settings.model is not None)
        refuse_changed_base(of_adapter, found, adapter, chosen=settings.model is not None)
    templates = [resolve_template(settings, *pair) for pair in zip(adapters, facts, strict=True)]
    refuse_mixed_templates(adapters, templates)
    base = load_model(found, device=device)
    tokenizer = resolve_tokenizer(base.tokenizer, adapters, facts)
    for adapter in reversed(adapters):  # all, to find a broken one before the work begins
        load_adapter(base.decoder, adapter)
    for adapter, of_adapter in zip(adapters, facts, strict=True):
        check_adapter_files(adapter, of_adapter)
    mention_chat_template(base, templates[0].name)
    return [TunedModel(base.decoder, tokenizer, templates[0], found, adapter) for adapter in adapters]


def refuse_missing_adapters(adapters: Sequence[Path]) -> None:
    if missing := [adapter for adapter in adapters if not adapter.is_dir()]:
        raise UserError(
            *(
                f"--adapter {adapter}: there is no such folder; train an adapter with `loratune train`"
                for adapter in missing
            )
        )
    for adapter in adapters:
        check_adapter_exists(adapter)


def refuse_mixed_templates(adapters: Sequence[Path], templates: Sequence[Template]) -> None:
    for adapter, template in zip(adapters, templates, strict=True):
        if template != templates[0]:
            raise UserError(
                f"--adapter {adapter}: trained with the template {template.name!r}, but {adapters[0]} with "
                f"{templates[0].name!r}; evaluate it by itself, or choose one for all with --template"
            )


def find_adapter_base(metadata: dict, adapter: Path) -> ResolvedModel:
    """The base that the adapter was trained on: as loratune.json tells, or for another tool's adapter, PEFT's
    file.
    """
    name = metadata["base"]["name"] if "base" in metadata else read_peft_base_name(adapter)
    try:
        return resolve_model(name)
    except UserError as error:
        raise UserError(
            f"--adapter {adapter}: its base model is not available; name it with --model "
            f"({describe_error(error)})"
        ) from error


def read_peft_base_name(adapter: Path) -> str:
    name = read_base_name(adapter)
    if name is None:
        raise UserError(
            f"--adapter {adapter}: it does not say which base model it needs (no {ADAPTER_METADATA_FILE}, "
            f"and {ADAPTER_CONFIG_FILE} has no "
            "base_model_name_or_path); name it with --model"
        )
    if bundled := find_bundled_name(name):
        say(
            f"Base model: {bundled}, the installed copy, in 4 bits, of {name}, which "
            f"{adapter / ADAPTER_CONFIG_FILE} names."
        )
        return bundled
    say(f"Base model: {name}, which {adapter / ADAPTER_CONFIG_FILE} names.")
    return name


def refuse_mismatched_base(metadata: dict, found: ResolvedModel, adapter: Path, chosen: bool) -> None:
    """Of another tool's adapter the base is known by name alone, so there it is the user who decides:
    `chosen`.
    """
    made_for = metadata.get("base")
    if (
        not made_for
        and not chosen
        and (named := read_base_name(adapter)) not in (None, found.name, found.hub_name)
    ):
        raise UserError(
            f"--adapter {adapter}: {ADAPTER_CONFIG_FILE} names another base model, {named}, than "
            f"{found.name}; "
            "evaluate it by itself, or name the base of all with --model"
        )
    if made_for and made_for["fingerprint"] != found.fingerprint:
        raise UserError(
            f"--adapter {adapter}: made for the base model {made_for['name']} (weights "
            f"{made_for['fingerprint'][:12]}), "
            f"not for {found.name} (weights {found.fingerprint[:12]}); choose that base with --model, "
            "or train a new adapter; adapters of different bases are evaluated one by one"
        )


def refuse_changed_base(metadata: dict, found: ResolvedModel, adapter: Path, chosen: bool) -> None:
    """Raises UserError where the weights are the adapter's own, but not what else the base consists of.

    That may be meant, such as rotary positions that are scaled for longer texts: a base that the user has
    `chosen` is used with a warning. Adapters of the first version say nothing of it.
    """
    made_for, now = metadata.get("base", {}), {"config": found.config, "tokenizer": found.tokenizer}
    words = {
        "config": "configuration (config.json)",
        "tokenizer": "tokenizer (its files or generation_config.json)",
    }
    changed = " and ".join(words[name] for name in now if name in made_for and made_for[name] != now[name])
    if changed and chosen:
        warn(
            f"--adapter {adapter}: trained with another {changed} of {found.name}; with this one it may "
            "answer otherwise"
        )
    elif changed:
        raise UserError(
            f"--adapter {adapter}: the {changed} of its base model {found.name} is another one now than when "
            "it was trained; "
            f"bring that back, or use it as it is now by adding --model {found.name}"
        )


def resolve_tokenizer(tokenizer: Tokenizer, adapters: Sequence[Path], metadata: Sequence[dict]) -> Tokenizer:
    """The base's tokenizer, which begins prompts as those that the adapters were trained on begin, with BOS
    or without.
    """
    # One that says nothing was trained by loratune before prompts began with BOS, or by a tool that follows
    # the configuration.
    with_bos = [one.get("bos", False) if one else bool(tokenizer.bos) for one in metadata]
    for adapter, has_bos in zip(adapters, with_bos, strict=True):
        if has_bos != with_bos[0]:
            raise UserError(
                f"--adapter {adapter}: trained {describe_bos(has_bos)}, but {adapters[0]} "
                f"{describe_bos(with_bos[0])}; "
                "evaluate it by itself"
            )
    if with_bos[0] and not tokenizer.bos:
        raise UserError(
            f"--adapter {adapters[0]}: trained {describe_bos(True)}, but this base's tokenizer puts none in "
            "front of a text "
            "(the post-processor in its tokenizer.json); choose the folder that it was trained on with "
            "--model"
        )
    if tokenizer.bos and not with_bos[0]:
        say(
            f"Prompts begin without a BOS token, although the tokenizer has one: {adapters[0]} was trained "
            "so."
        )
    return tokenizer if with_bos[0] else tokenizer.without_bos()


def describe_bos(has_bos: bool) -> str:
    return "with a BOS token in front of each prompt" if has_bos else "without a BOS token in front"


def resolve_template(settings: BaseOverrideConfig, adapter: Path, metadata: dict) -> Template:
    """The adapter's own template, unless the user asks for another."""
    own = (
        Template.from_dict(metadata["template"], f"{adapter / ADAPTER_METADATA_FILE}: template")
        if "template" in metadata
        else None
    )
    if settings.template is not None:
        chosen = load_template(settings.template)
        if own and chosen != own:
            warn(
                f"the adapter was trained with the template {own.name!r}; with {chosen.name!r} it will "
                "answer worse"
            )
        return chosen
    if own is None:
        say("The adapter was made by another tool and names no template; the default one is used.")
    return own or load_template("instruction")
