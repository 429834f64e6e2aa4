"""The Llama family (Llama, Mistral, Qwen2, Qwen2.5, Qwen3): rotary positions, RMSNorm, SwiGLU."""

from typing import TYPE_CHECKING

import torch

from loratune.errors import UserError
from loratune.models.architectures.base import Architecture, HfModule, resolve_activation
from loratune.models.spec import DecoderSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def build_spec(config: "PretrainedConfig") -> DecoderSpec:
    """Return the spec of a model of the family. Raises UserError for what the decoder does not compute."""
    # Mistral and Qwen limit attention to a window; inside it, it is plain causal attention.
    has_window = getattr(config, "use_sliding_window", config.model_type == "mistral")
    window = config.sliding_window if has_window else None
    qkv_bias = config.model_type == "qwen2" or getattr(config, "attention_bias", False)
    frequencies, scale = compute_rotary_frequencies(config)
    if (activation := resolve_activation(config.hidden_act)) != "silu":
        raise UserError(
            f"the gated activation {config.hidden_act!r} is not supported; supported is silu (SwiGLU)"
        )
    return DecoderSpec(
        architecture=config.model_type,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=get_head_dim(config),
        intermediate_size=config.intermediate_size,
        max_positions=min(config.max_position_embeddings, window or config.max_position_embeddings),
        norm="rms",
        eps=config.rms_norm_eps,
        activation=activation,
        gated=True,
        tied_head=config.tie_word_embeddings,
        fused_qkv=False,
        qkv_bias=qkv_bias,
        output_bias=qkv_bias and config.model_type != "qwen2",
        mlp_bias=getattr(config, "mlp_bias", False),
        qk_norm=config.model_type == "qwen3",
        rotary_frequencies=frequencies,
        rotary_scale=scale,
    )


def get_head_dim(config: "PretrainedConfig") -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def compute_rotary_frequencies(config: "PretrainedConfig") -> tuple[tuple[float, ...], float]:
    """Return the rotary frequencies, in radians per position, and the scale of cosine and sine.

    They are scaled for long contexts (linear, llama3, yarn) where the configuration says so.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = config.rope_parameters
    kind = parameters.get("rope_type", "default")
    if kind in ("dynamic", "longrope"):
        raise UserError(f"rotary positions of the kind {kind!r} change with the length and are not supported")
    if kind != "default":
        frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
        return tuple(frequencies.tolist()), scale
    head_dim = get_head_dim(config)
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    return tuple((1.0 / parameters["rope_theta"] ** exponents).tolist()), 1.0


LLAMA = Architecture(
    model_types={"llama": "SmolLM2, TinyLlama, Llama 3.2", "mistral": "", "qwen2": "", "qwen3": ""},
    build_spec=build_spec,
    outer_modules={
        "embedding": HfModule("model.embed_tokens"),
        "norm": HfModule("model.norm"),
        "head": HfModule("lm_head"),
    },
    layers="model.layers",
    layer_modules={
        "attention.query": HfModule("self_attn.q_proj"),
        "attention.key": HfModule("self_attn.k_proj"),
        "attention.value": HfModule("self_attn.v_proj"),
        "attention.output": HfModule("self_attn.o_proj"),
        "attention.query_norm": HfModule("self_attn.q_norm"),
        "attention.key_norm": HfModule("self_attn.k_norm"),
        "mlp.gate": HfModule("mlp.gate_proj"),
        "mlp.up": HfModule("mlp.up_proj"),
        "mlp.down": HfModule("mlp.down_proj"),
        "attention_norm": HfModule("input_layernorm"),
        "mlp_norm": HfModule("post_attention_layernorm"),
    },
)
