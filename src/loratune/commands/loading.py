"""From an adapter folder to a base model with the adapter on it and the template that it was trained with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loratune.commands.device import choose_device
from loratune.config.shared import AdapterChoice, AdapterUse
from loratune.data.template import Template, load_template
from loratune.errors import UserError
from loratune.models.adapter import CONFIG, DESCRIPTION, described, load_adapter, named_base, refuse_mixed, refuse_no_adapter
from loratune.models.decoder import Decoder
from loratune.models.load import Base, load_base
from loratune.models.resolve import FoundBase, bundled_for, find_base
from loratune.models.tokenizer import Tokenizer
from loratune.system.console import say, warn


@dataclass(frozen=True)
class Tuned:
    """One base in memory; `models.lora.without_adapter(decoder)` gives the base's own answers."""

    decoder: Decoder
    tokenizer: Tokenizer
    template: Template
    base: FoundBase
    adapter: Path


def load_tuned(settings: AdapterChoice) -> Tuned:
    """Raises UserError when the adapter or its base is missing or they do not belong together."""
    return load_side_by_side(settings, [settings.adapter])[0]


def load_side_by_side(settings: AdapterUse, adapters: Sequence[Path]) -> list[Tuned]:
    """Several adapters for one base, whose decoder they share. The first is on it; `load_adapter` puts another in its place.

    Raises UserError when one is missing, or is of another base or template than the first, or begins prompts otherwise.
    """
    refuse_missing(adapters)
    facts = [described(adapter) for adapter in adapters]
    device = choose_device(settings.threads, settings.device)
    found = find_base(settings.model) if settings.model else base_of(facts[0], adapters[0])
    for adapter, of_adapter in zip(adapters, facts, strict=True):
        refuse_another_base(of_adapter, found, adapter, chosen=settings.model is not None)
        refuse_changed_base(of_adapter, found, adapter, chosen=settings.model is not None)
    templates = [template_of(settings, *pair) for pair in zip(adapters, facts, strict=True)]
    refuse_other_templates(adapters, templates)
    base = load_base(found, device=device)
    tokenizer = tokenizer_of(base.tokenizer, adapters, facts)
    for adapter in reversed(adapters):  # all, to find a broken one before the work begins
        load_adapter(base.decoder, adapter)
    for adapter, of_adapter in zip(adapters, facts, strict=True):
        refuse_mixed(adapter, of_adapter)
    tell_own_template(base, templates[0])
    return [Tuned(base.decoder, tokenizer, templates[0], found, adapter) for adapter in adapters]


def tell_own_template(base: Base, template: Template) -> None:
    """Say that a base with a chat template is not asked as its makers ask it, so it may not be at its best in a comparison."""
    if base.tokenizer.has_chat_template:
        say(
            f"{base.found.title} has a chat template of its own: it may have been tuned to answer already. It is asked "
            f"in the template {template.name!r} instead, in which it may answer worse than it can."
        )


def refuse_missing(adapters: Sequence[Path]) -> None:
    if missing := [adapter for adapter in adapters if not adapter.is_dir()]:
        raise UserError(
            *(f"--adapter {adapter}: there is no such folder; train an adapter with `loratune train`" for adapter in missing)
        )
    for adapter in adapters:
        refuse_no_adapter(adapter)


def refuse_other_templates(adapters: Sequence[Path], templates: Sequence[Template]) -> None:
    for adapter, template in zip(adapters, templates, strict=True):
        if template != templates[0]:
            raise UserError(
                f"--adapter {adapter}: trained with the template {template.name!r}, but {adapters[0]} with "
                f"{templates[0].name!r}; evaluate it by itself, or choose one for all with --template"
            )


def base_of(facts: dict, adapter: Path) -> FoundBase:
    """The base that the adapter was trained on: as loratune.json tells, or for another tool's adapter, PEFT's file."""
    name = facts["base"]["name"] if "base" in facts else base_told_by_peft(adapter)
    try:
        return find_base(name)
    except UserError as error:
        raise UserError(f"--adapter {adapter}: its base model is not at hand; name it with --model ({error})") from error


def base_told_by_peft(adapter: Path) -> str:
    name = named_base(adapter)
    if name is None:
        raise UserError(
            f"--adapter {adapter}: it does not say which base model it needs (no {DESCRIPTION}, and {CONFIG} has no "
            "base_model_name_or_path); name it with --model"
        )
    if bundled := bundled_for(name):
        say(f"Base model: {bundled}, the installed copy, in 4 bits, of {name}, which {adapter / CONFIG} names.")
        return bundled
    say(f"Base model: {name}, which {adapter / CONFIG} names.")
    return name


def refuse_another_base(facts: dict, found: FoundBase, adapter: Path, chosen: bool) -> None:
    """Of another tool's adapter the base is known by name alone, so there it is the user who decides: `chosen`."""
    made_for = facts.get("base")
    if not made_for and not chosen and (named := named_base(adapter)) not in (None, found.name, found.hub_name):
        raise UserError(
            f"--adapter {adapter}: {CONFIG} names another base model, {named}, than {found.name}; "
            "evaluate it by itself, or name the base of all with --model"
        )
    if made_for and made_for["fingerprint"] != found.fingerprint:
        raise UserError(
            f"--adapter {adapter}: made for the base model {made_for['name']} (weights {made_for['fingerprint'][:12]}), "
            f"not for {found.name} (weights {found.fingerprint[:12]}); choose that base with --model, "
            "or train a new adapter; adapters of different bases are evaluated one by one"
        )


def refuse_changed_base(facts: dict, found: FoundBase, adapter: Path, chosen: bool) -> None:
    """Raises UserError where the weights are the adapter's own, but not what else the base consists of.

    That may be meant, such as rotary positions that are scaled for longer texts: a base that the user has `chosen` is used
    with a warning. Adapters of the first version say nothing of it.
    """
    made_for, now = facts.get("base", {}), {"config": found.config, "tokenizer": found.tokenizer}
    words = {"config": "configuration (config.json)", "tokenizer": "tokenizer (its files or generation_config.json)"}
    changed = " and ".join(words[name] for name in now if name in made_for and made_for[name] != now[name])
    if changed and chosen:
        warn(f"--adapter {adapter}: trained with another {changed} of {found.name}; with this one it may answer otherwise")
    elif changed:
        raise UserError(
            f"--adapter {adapter}: the {changed} of its base model {found.name} is another one now than when it was trained; "
            f"bring that back, or use it as it is now by adding --model {found.name}"
        )


def tokenizer_of(tokenizer: Tokenizer, adapters: Sequence[Path], facts: Sequence[dict]) -> Tokenizer:
    """The base's tokenizer, which begins prompts as those that the adapters were trained on begin, with BOS or without."""
    # One that says nothing was trained by loratune before prompts began with BOS, or by a tool that follows the configuration.
    with_bos = [one.get("bos", False) if one else bool(tokenizer.bos) for one in facts]
    for adapter, has_bos in zip(adapters, with_bos, strict=True):
        if has_bos != with_bos[0]:
            raise UserError(
                f"--adapter {adapter}: trained {bos_in_words(has_bos)}, but {adapters[0]} {bos_in_words(with_bos[0])}; "
                "evaluate it by itself"
            )
    if with_bos[0] and not tokenizer.bos:
        raise UserError(
            f"--adapter {adapters[0]}: trained {bos_in_words(True)}, but this base's tokenizer puts none in front of a text "
            "(the post-processor in its tokenizer.json); choose the folder that it was trained on with --model"
        )
    if tokenizer.bos and not with_bos[0]:
        say(f"Prompts begin without a BOS token, although the tokenizer has one: {adapters[0]} was trained so.")
    return tokenizer if with_bos[0] else tokenizer.without_bos()


def bos_in_words(has_bos: bool) -> str:
    return "with a BOS token in front of each prompt" if has_bos else "without a BOS token in front"


def template_of(settings: AdapterUse, adapter: Path, facts: dict) -> Template:
    """The adapter's own template, unless the user asks for another."""
    own = Template.from_dict(facts["template"], f"{adapter / DESCRIPTION}: template") if "template" in facts else None
    if settings.template is not None:
        chosen = load_template(settings.template)
        if own and chosen != own:
            warn(f"the adapter was trained with the template {own.name!r}; with {chosen.name!r} it will answer worse")
        return chosen
    if own is None:
        say("The adapter was made by another tool and names no template; the default one is used.")
    return own or load_template("instruction")
