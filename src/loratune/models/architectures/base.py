"""Architecture: how to build a spec from a Hugging Face configuration, and where the weights are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from loratune.errors import UserError
from loratune.models.spec import DecoderSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}


def identity(weight: Tensor) -> Tensor:
    return weight


def transpose(weight: Tensor) -> Tensor:
    """Return a view of a matrix [in, out], such as Conv1D's, as [out, in]; a vector is unchanged."""
    return weight.t()


@dataclass(frozen=True)
class HfModule:
    """A module in the model's own files."""

    name: str
    transform: Callable[[Tensor], Tensor] = identity  # from its tensors there to ours, without a copy


@dataclass(frozen=True)
class Architecture:
    """A family of models that one builder and one weight map cover.

    PEFT uses Hugging Face's names, too, so that adapters are found by the same map.
    """

    model_types: Mapping[str, str]  # Hugging Face's `model_type` -> names of well-known models of it
    build_spec: Callable[["PretrainedConfig"], DecoderSpec]
    outer_modules: Mapping[str, HfModule]  # our module name -> theirs, outside the layers
    layers: str  # their name of the list of layers
    layer_modules: Mapping[str, HfModule]  # our module name inside a layer -> theirs inside a layer

    def find_module(self, module: str) -> HfModule:
        """Return where our module is in the model's own files.

        `layers.3.mlp.up` is `transformer.h.3.mlp.c_fc` in GPT-2.
        """
        if not module.startswith("layers."):
            return self.outer_modules[module]
        _, number, inner = module.split(".", 2)
        source = self.layer_modules[inner]
        return HfModule(f"{self.layers}.{number}.{source.name}", source.transform)

    @property
    def linear_names(self) -> dict[str, str]:
        """The linear layers inside a layer, which LoRA can adapt: our names -> theirs."""
        return {ours: source.name for ours, source in self.layer_modules.items() if not ours.endswith("norm")}

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether the linear layers' own weights are [in, out], as PEFT calls it."""
        return any(source.transform is transpose for source in self.layer_modules.values())


def resolve_activation(name: str) -> str:
    """Return our name of a Hugging Face activation. Raises UserError if it is not supported."""
    if name not in ACTIVATIONS:
        raise UserError(f"the activation {name!r} is not supported; supported are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def reject_if_set(config: "PretrainedConfig", *names: str) -> None:
    """Raise UserError if the configuration enables an option that the decoder does not support."""
    for name in names:
        if getattr(config, name, False):
            raise UserError(f"this model's configuration has {name}, which is not supported")
