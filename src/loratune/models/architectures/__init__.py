"""The supported architectures. A new one is a file in this folder and a line in `FAMILIES`."""

from typing import TYPE_CHECKING

from loratune.errors import UserError
from loratune.models.architectures.base import Architecture
from loratune.models.architectures.gpt2 import GPT2
from loratune.models.architectures.llama import LLAMA
from loratune.models.spec import DecoderSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FAMILIES = (
    GPT2,
    LLAMA,
)
# Hugging Face's `model_type` -> the architecture
ARCHITECTURES: dict[str, Architecture] = {
    model_type: family for family in FAMILIES for model_type in family.model_types
}


def build_spec(config: "PretrainedConfig") -> DecoderSpec:
    """Return the spec of a `transformers` configuration.

    Raises:
        UserError: the architecture, or a variant of it, is not supported.
    """
    if config.model_type not in ARCHITECTURES:
        raise UserError(
            f"the architecture {config.model_type!r} is not supported; supported are {list_supported()}"
        )
    return ARCHITECTURES[config.model_type].build_spec(config)


def get_architecture(spec: DecoderSpec) -> Architecture:
    return ARCHITECTURES[spec.architecture]


def list_supported() -> str:
    """Return the model types, with well-known models of each, as an error message lists them."""
    known = ((model_type, family.model_types[model_type]) for model_type, family in ARCHITECTURES.items())
    return ", ".join(f"{model_type} ({models})" if models else model_type for model_type, models in known)
