"""A small base model and an adapter for it on disk, as training leaves them."""

from pathlib import Path

from loratune.data.template import load_template
from loratune.models.adapter import save_adapter, write_adapter_metadata
from loratune.models.load import load_model
from loratune.models.lora import add_lora
from loratune.models.resolve import resolve_model
from support.small_models import randomise_lora, save_model


def save_tuned(
    place: Path,
    effect: bool = True,
    name: str = "adapter",
    seed: int = 1,
    targets: str = "all",
    base: str = "base",
    template: str = "instruction",
) -> None:
    """`base/` and `adapter/` in `place`; without effect the adapter changes nothing."""
    if not (place / base).exists():
        save_model(place / base, seed=len(base))
    found = resolve_model(base)
    decoder = load_model(found).decoder
    add_lora(decoder, rank=4, alpha=8, dropout=0, targets=[targets])
    if effect:
        randomise_lora(decoder, seed)
    save_adapter(decoder, place / name, base)
    facts = {
        "base": {
            "name": base,
            "hub_name": found.hub_name,
            "fingerprint": found.fingerprint,
            "config": found.config,
            "tokenizer": found.tokenizer,
        },
        "template": load_template(template).to_dict(),
    }
    write_adapter_metadata(place / name, facts)
