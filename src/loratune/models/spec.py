"""What a decoder looks like: the numbers and choices in which GPT-2 and the Llama family differ."""

from dataclasses import dataclass

from loratune.errors import UserError

SUPPORTED_ARCHITECTURES = (
    "gpt2 (GPT-2, DistilGPT2, Cerebras-GPT), llama (SmolLM2, TinyLlama, Llama 3.2), mistral, qwen2, qwen3"
)


@dataclass(frozen=True)
class DecoderSpec:
    """One decoder-only transformer with pre-normalisation. Widths are in elements, `eps` in the norm's own
    unit.
    """

    architecture: str  # "gpt2" or "llama": decides the names of the weights
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int  # fewer than heads: grouped-query attention
    head_dim: int
    intermediate_size: int
    max_positions: int
    norm: str  # "layer" or "rms"
    eps: float
    activation: str  # "gelu_tanh", "gelu", "silu" or "relu"
    gated: bool  # SwiGLU: the MLP multiplies its activation with a second projection
    tied_head: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool = False
    # Angle per position of each pair of dimensions, in radians; None: learned positions are added instead.
    rotary_frequencies: tuple[float, ...] | None = None
    rotary_scale: float = 1.0

    @property
    def fused_qkv(self) -> bool:
        return self.architecture == "gpt2"


def build_spec(config) -> DecoderSpec:
    """The spec of a `transformers` configuration. Raises UserError for what the decoder does not compute."""
    if config.model_type == "gpt2":
        return _build_gpt2_spec(config)
    if config.model_type in ("llama", "mistral", "qwen2", "qwen3"):
        return _build_llama_spec(config)
    raise UserError(
        f"the architecture {config.model_type!r} is not supported; supported are {SUPPORTED_ARCHITECTURES}"
    )


def _build_gpt2_spec(config) -> DecoderSpec:
    _reject_if_set(config, "scale_attn_by_inverse_layer_idx", "add_cross_attention")
    if not config.scale_attn_weights:
        raise UserError(
            "this GPT-2 variant does not scale its attention scores (scale_attn_weights), which is not "
            "supported"
        )
    return DecoderSpec(
        architecture="gpt2",
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
        activation=_resolve_activation(config.activation_function),
        gated=False,
        tied_head=config.tie_word_embeddings,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
    )


def _build_llama_spec(config) -> DecoderSpec:
    # Mistral and Qwen have a window in which attention is limited; inside it, it is plain causal attention.
    window = (
        config.sliding_window
        if getattr(config, "use_sliding_window", config.model_type == "mistral")
        else None
    )
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    qkv_bias = config.model_type == "qwen2" or getattr(config, "attention_bias", False)
    frequencies, scale = _compute_rotary_frequencies(config)
    if (activation := _resolve_activation(config.hidden_act)) != "silu":
        raise UserError(
            f"the gated activation {config.hidden_act!r} is not supported; supported is silu (SwiGLU)"
        )
    return DecoderSpec(
        architecture="llama",
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        intermediate_size=config.intermediate_size,
        max_positions=min(config.max_position_embeddings, window or config.max_position_embeddings),
        norm="rms",
        eps=config.rms_norm_eps,
        activation=activation,
        gated=True,
        tied_head=config.tie_word_embeddings,
        qkv_bias=qkv_bias,
        output_bias=qkv_bias and config.model_type != "qwen2",
        mlp_bias=getattr(config, "mlp_bias", False),
        qk_norm=config.model_type == "qwen3",
        rotary_frequencies=frequencies,
        rotary_scale=scale,
    )


def _compute_rotary_frequencies(config) -> tuple[tuple[float, ...], float]:
    """Rotary frequencies, scaled for long contexts (linear, llama3, yarn) where the configuration says so."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = config.rope_parameters
    kind = parameters.get("rope_type", "default")
    if kind in ("dynamic", "longrope"):
        raise UserError(f"rotary positions of the kind {kind!r} change with the length and are not supported")
    if kind != "default":
        frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
        return tuple(frequencies.tolist()), scale
    import torch

    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    return tuple((1.0 / parameters["rope_theta"] ** exponents).tolist()), 1.0


def _resolve_activation(name: str) -> str:
    known = {
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_fast": "gelu_tanh",
        "gelu": "gelu",
        "silu": "silu",
        "swish": "silu",
        "relu": "relu",
    }
    if name not in known:
        raise UserError(f"the activation {name!r} is not supported; supported are {', '.join(known)}")
    return known[name]


def _reject_if_set(config, *names: str) -> None:
    for name in names:
        if getattr(config, name, False):
            raise UserError(f"this model's configuration has {name}, which is not supported")
