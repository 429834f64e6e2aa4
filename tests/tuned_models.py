"""A small base and an adapter for it on disk, as training leaves them."""

from pathlib import Path

from loratune.data.template import load_template
from loratune.models.adapter import describe, save_adapter
from loratune.models.find import find_base
from loratune.models.load import load_base
from loratune.models.lora import add_lora
from small_models import randomise_lora, save_model


def save_tuned(place: Path, effect: bool = True) -> None:
    """`base/` and `adapter/` in `place`; without effect the adapter changes nothing."""
    if not (place / "base").exists():
        save_model(place / "base")
    found = find_base("base")
    decoder = load_base(found).decoder
    add_lora(decoder, rank=4, alpha=8, dropout=0, targets=["all"])
    if effect:
        randomise_lora(decoder)
    save_adapter(decoder, place / "adapter", "base")
    facts = {
        "base": {"name": "base", "hub_name": found.hub_name, "fingerprint": found.fingerprint},
        "template": load_template("instruction").to_dict(),
    }
    describe(place / "adapter", facts)
