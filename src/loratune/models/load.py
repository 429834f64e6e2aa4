"""Load a base model: our decoder with the weights of a model folder, and its tokenizer."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from loratune.models.architectures import build_spec, get_architecture
from loratune.models.decoder import Decoder
from loratune.models.lora import named_linears
from loratune.models.resolve import ResolvedModel, model_error, resolve_model
from loratune.models.spec import DecoderSpec
from loratune.models.tokenizer import Tokenizer
from loratune.system.cache import get_cache_folder
from loratune.system.memory import is_out_of_memory
from loratune.system.messages import say
from loratune.system.quiet import quiet_libraries

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class LoadedModel:
    """A base model in memory, and where it comes from."""

    decoder: Decoder
    tokenizer: Tokenizer
    resolved: ResolvedModel


def load_base(name: str = "auto", *, precision: str = "fp32", device: str = "cpu") -> LoadedModel:
    """Find a base model by its name and load it.

    Args:
        name: a short name, a name on the hub, a folder, a .gguf file, or auto.
        precision: of the large matrices, fp32 or bf16.
        device: cpu or cuda.

    Raises:
        UserError: there is no such model, or it cannot be used.
    """
    return load_model(resolve_model(name), PRECISIONS[precision], device)


def load_model(
    resolved: ResolvedModel,
    precision: torch.dtype = torch.float32,
    device: str = "cpu",
    *,
    tokenizer: Tokenizer | None = None,
) -> LoadedModel:
    """Load a base model and its tokenizer.

    Args:
        resolved: from `resolve_model`.
        precision: of the large matrices.
        device: where they are put.
        tokenizer: the model's, where it is loaded already.

    Raises:
        UserError: the weights are broken or of an architecture that is not supported.
    """
    tokenizer = tokenizer or Tokenizer.load(resolved.folder)
    config, weights = read_weights(resolved.folder)
    decoder = build_decoder(build_spec(config), weights)
    if tokenizer.size > decoder.spec.vocab_size:
        raise model_error(
            resolved.name,
            f"its tokenizer has ids up to {tokenizer.size - 1:,}, the model only up to "
            f"{decoder.spec.vocab_size - 1:,}; they do not belong together",
            remedy="copy its files from the model's source",
        )
    return LoadedModel(set_precision(decoder, precision).to(device), tokenizer, resolved)


def read_weights(folder: Path) -> tuple["PretrainedConfig", dict[str, torch.Tensor]]:
    """Return a model's configuration and its fp32 weights by their own names, from safetensors files only."""
    model = read_transformers_model(folder)
    return model.config, model.state_dict()


def read_transformers_model(folder: Path) -> "PreTrainedModel":
    """Return the model as transformers has it, in fp32, from safetensors files only.

    Raises:
        UserError: the files are missing or broken, or a weight is not finite.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    options = {
        "dtype": torch.float32,
        "use_safetensors": True,
        "local_files_only": True,
        "output_loading_info": True,
    }
    try:
        with quiet_libraries():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            # Nothing in the folder may choose the code that runs, neither its own (auto_map) nor an attention
            # kernel from the hub.
            config._attn_implementation = "eager"
            model, loading_info = cast(
                tuple["PreTrainedModel", dict[str, Any]],
                AutoModelForCausalLM.from_pretrained(
                    folder, config=config, trust_remote_code=False, **options
                ),
            )
    except Exception as error:  # whatever transformers and safetensors raise for a broken file
        if is_out_of_memory(error):
            raise
        raise model_error(folder, f"the model cannot be read: {error}", remedy=suggest_fix(folder)) from error
    if missing := sorted(loading_info["missing_keys"]):
        # transformers would initialise them at random.
        raise model_error(
            folder, f"the files lack {len(missing)} of the model's weights, such as {missing[0]}"
        )
    if broken := [name for name, tensor in model.state_dict().items() if not all_finite(tensor)]:
        raise model_error(
            folder, f"the weights have non-finite numbers in {broken[0]}", remedy=suggest_fix(folder)
        )
    return model


def suggest_fix(folder: Path) -> str:
    if folder.parent == get_cache_folder():
        return "remove this folder, and it is created again"
    return "download or copy its files again"


def all_finite(tensor: torch.Tensor) -> bool:
    """Return whether all elements are finite.

    The sum takes a twentieth of the time; it is finite unless an element is not, or it overflows.
    """
    return bool(tensor.sum().isfinite() or tensor.isfinite().all())


def build_decoder(spec: DecoderSpec, weights: dict[str, torch.Tensor]) -> Decoder:
    """Return a decoder that shares its memory with the given weights, named as in the model's own files."""
    with torch.device("meta"):
        decoder = Decoder(spec)
    architecture, our_weights = get_architecture(spec), {}
    for name in decoder.state_dict():
        module, kind = name.rsplit(".", 1)
        source = architecture.find_module(module)
        our_weights[name] = source.transform(weights[f"{source.name}.{kind}"])
    decoder.load_state_dict(our_weights, assign=True)
    return decoder.requires_grad_(False).eval()


def set_precision(decoder: Decoder, precision: torch.dtype) -> Decoder:
    """Convert the large matrices to the precision of their products; everything else stays in fp32."""
    if precision == torch.float32:
        return decoder
    large = {decoder.embedding.weight, decoder.head_weight}
    for _, linear in named_linears(decoder):
        large |= {linear.weight, linear.bias}
    for parameter in decoder.parameters():
        # Small ones are copied, too: a view of one would keep the whole fp32 file in memory.
        parameter.data = parameter.data.to(precision if parameter in large else parameter.dtype, copy=True)
    return decoder


def mention_chat_template(model: LoadedModel, template: str) -> None:
    """Tell the user if the base model has a chat template that the training does not use.

    Args:
        model: the base model.
        template: the name of the prompt template that is used.
    """
    if model.tokenizer.chat_template and template != "chat":
        say(
            f"{model.resolved.title} has a chat template of its own: it may have been tuned to answer "
            f"already. The adapter learns the template {template!r} instead; `loratune evaluate` and "
            "`loratune compare` ask the base in both."
        )
