"""GPT-2: learned positions, LayerNorm, one product for query, key and value, all with biases."""

from typing import TYPE_CHECKING

from loratune.errors import UserError
from loratune.models.architectures.base import (
    Architecture,
    HfModule,
    reject_if_set,
    resolve_activation,
    transpose,
)
from loratune.models.spec import DecoderSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def build_spec(config: "PretrainedConfig") -> DecoderSpec:
    """Return the spec of a GPT-2. Raises UserError for variants that the decoder does not compute."""
    reject_if_set(config, "scale_attn_by_inverse_layer_idx", "add_cross_attention")
    if not config.scale_attn_weights:
        raise UserError(
            "this GPT-2 variant does not scale its attention scores (scale_attn_weights), which is not "
            "supported"
        )
    return DecoderSpec(
        architecture=config.model_type,
        vocab_size=config.vocab_size,
        hidden_size=config.n_embd,
        layers=config.n_layer,
        heads=config.n_head,
        kv_heads=config.n_head,
        head_dim=config.n_embd // config.n_head,
        intermediate_size=config.n_inner or 4 * config.n_embd,
        max_positions=config.n_positions,
        norm="layer",
        eps=config.layer_norm_epsilon,
        activation=resolve_activation(config.activation_function),
        gated=False,
        tied_head=config.tie_word_embeddings,
        fused_qkv=True,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
    )


# The linear layers are Conv1D: their weight is [in, out] where everybody else's is [out, in].
GPT2 = Architecture(
    model_types={"gpt2": "GPT-2, DistilGPT2, Cerebras-GPT"},
    build_spec=build_spec,
    outer_modules={
        "embedding": HfModule("transformer.wte"),
        "positions": HfModule("transformer.wpe"),
        "norm": HfModule("transformer.ln_f"),
        "head": HfModule("lm_head"),
    },
    layers="transformer.h",
    layer_modules={
        "attention.qkv": HfModule("attn.c_attn", transpose),
        "attention.output": HfModule("attn.c_proj", transpose),
        "mlp.up": HfModule("mlp.c_fc", transpose),
        "mlp.down": HfModule("mlp.c_proj", transpose),
        "attention_norm": HfModule("ln_1"),
        "mlp_norm": HfModule("ln_2"),
    },
)
