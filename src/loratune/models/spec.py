"""DecoderSpec: the sizes and choices in which GPT-2 and the models of the Llama family differ."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DecoderSpec:
    """One decoder-only transformer with pre-normalisation. Sizes are in elements."""

    architecture: str  # Hugging Face's `model_type`: decides the names of the weights
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int  # fewer than heads: grouped-query attention
    head_dim: int
    intermediate_size: int
    max_positions: int
    norm: str  # "layer" or "rms"
    eps: float  # added to the variance or mean square in the norms
    activation: str  # "gelu_tanh", "gelu", "silu" or "relu"
    gated: bool  # SwiGLU: the MLP multiplies its activation with a second projection
    tied_head: bool  # the LM head is the embedding
    fused_qkv: bool  # query, key and value are one linear layer
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool = False
    # Angle per position of each pair of dimensions, in radians; None: learned positions are added instead.
    rotary_frequencies: tuple[float, ...] | None = None
    rotary_scale: float = 1.0
