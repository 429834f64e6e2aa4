"""The decoder: GPT-2 and the Llama family, computed from a spec.

Tokens have no batch dimension: documents lie end to end, and the caller chooses which tokens attend to which
(`attend`). So training on packed sequences, prefill and decoding with a KV cache are the same few lines.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from loratune.models.lora import LoraLinear
from loratune.models.ops.attention import AttentionFn
from loratune.models.ops.elementwise import (
    ElementwiseOp,
    LayerNorm,
    RMSNorm,
    gelu,
    gelu_tanh,
    identity,
    relu,
    rotate,
    silu,
    swiglu,
)
from loratune.models.ops.linear import apply_lora_linears
from loratune.models.ops.nll import VOCAB_BLOCK_SIZE
from loratune.models.spec import DecoderSpec

ACTIVATIONS = {"gelu_tanh": gelu_tanh, "gelu": gelu, "silu": silu, "relu": relu}


class Decoder(nn.Module):
    """A decoder-only transformer with frozen weights; its linear layers may have LoRA adapters."""

    def __init__(self, spec: DecoderSpec):
        super().__init__()
        self.spec = spec
        self.embedding = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.positions = (
            nn.Embedding(spec.max_positions, spec.hidden_size) if spec.rotary_frequencies is None else None
        )
        self.layers = nn.ModuleList(DecoderLayer(spec, number) for number in range(spec.layers))
        self.norm = build_norm(spec, spec.hidden_size)
        self.head = None if spec.tied_head else nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)
        self.gradient_checkpointing = False  # recompute each layer's activations in the backward pass
        self.merged = False  # whether the adapter is currently merged into the weights, see `merge_adapter`
        self.requires_grad_(False)

    def forward(
        self, ids: Tensor, positions: Tensor, attend: AttentionFn, output_index: Tensor | None = None
    ) -> Tensor:
        """Compute the last hidden states, after the final norm.

        Args:
            ids: token ids, [tokens].
            positions: of the tokens in their documents, [tokens].
            attend: computes attention, such as from `packed_attention`.
            output_index: the tokens whose hidden states are needed, [outputs]; None: all. The others are not
                computed beyond the last layer's attention.

        Returns:
            [tokens, hidden_size] or [outputs, hidden_size], fp32.
        """
        x = self.embedding(ids).float()  # the residual stream stays in fp32 whatever the weights are
        rotary = None
        if self.positions is not None:
            x = x + self.positions(positions)
        else:
            rotary = compute_rotary(self.spec, positions)
        for layer in self.layers:
            inputs = (x, rotary, attend, output_index if layer is self.layers[-1] else None)
            x = (
                checkpoint(layer, *inputs, use_reentrant=False)
                if self.gradient_checkpointing and self.training
                else layer(*inputs)
            )
        return self.norm(x)

    @property
    def head_weight(self) -> Tensor:
        """The weight of the LM head, [vocabulary, hidden_size]."""
        return self.embedding.weight if self.head is None else self.head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute the logits, [rows, vocabulary], of hidden states [rows, hidden_size]."""
        h = hidden.to(self.head_weight.dtype)
        return torch.cat([F.linear(h, block) for block in self.head_weight.split(VOCAB_BLOCK_SIZE)], -1)


class DecoderLayer(nn.Module):
    def __init__(self, spec: DecoderSpec, number: int):
        super().__init__()
        self.attention_norm = build_norm(spec, spec.hidden_size)
        self.attention = Attention(spec, number)
        self.mlp_norm = build_norm(spec, spec.hidden_size)
        self.mlp = Mlp(spec)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        attend: AttentionFn,
        output_index: Tensor | None = None,
    ) -> Tensor:
        attended = self.attention(x, self.attention_norm.elementwise_op, rotary, attend, output_index)
        # Added in place: where the products are in bf16, x + y would make two copies in fp32 instead of one.
        x = attended.to(x.dtype).add_(x if output_index is None else x[output_index])
        return self.mlp(x, self.mlp_norm.elementwise_op).to(x.dtype).add_(x)


class Attention(nn.Module):
    def __init__(self, spec: DecoderSpec, number: int):
        super().__init__()
        self.number, self.head_dim = number, spec.head_dim
        queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        self.qkv_sizes = [queries, keys, keys]
        if spec.fused_qkv:
            self.qkv = LoraLinear(spec.hidden_size, sum(self.qkv_sizes), spec.qkv_bias)
        else:
            self.query = LoraLinear(spec.hidden_size, queries, spec.qkv_bias)
            self.key = LoraLinear(spec.hidden_size, keys, spec.qkv_bias)
            self.value = LoraLinear(spec.hidden_size, keys, spec.qkv_bias)
        self.fused = spec.fused_qkv
        self.query_norm = build_norm(spec, spec.head_dim) if spec.qk_norm else nn.Identity()
        self.key_norm = build_norm(spec, spec.head_dim) if spec.qk_norm else nn.Identity()
        self.output = LoraLinear(queries, spec.hidden_size, spec.output_bias)

    def forward(
        self,
        x: Tensor,
        norm: ElementwiseOp,
        rotary: tuple[Tensor, Tensor] | None,
        attend: AttentionFn,
        output_index: Tensor | None,
    ) -> Tensor:
        q, k, v = self.project_qkv(x, norm)
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in (q, k, v))
        q, k = self.query_norm(q), self.key_norm(k)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        attended = attend(self.number, q, k, v).flatten(1)
        return apply_lora_linears(
            [self.output], identity, attended if output_index is None else attended[output_index]
        )[0]

    def project_qkv(self, x: Tensor, norm: ElementwiseOp) -> tuple[Tensor, ...]:
        if self.fused:
            return apply_lora_linears([self.qkv], norm, x)[0].split(self.qkv_sizes, -1)
        return apply_lora_linears([self.query, self.key, self.value], norm, x)


class Mlp(nn.Module):
    def __init__(self, spec: DecoderSpec):
        super().__init__()
        self.gate = (
            LoraLinear(spec.hidden_size, spec.intermediate_size, spec.mlp_bias) if spec.gated else None
        )
        self.up = LoraLinear(spec.hidden_size, spec.intermediate_size, spec.mlp_bias)
        self.down = LoraLinear(spec.intermediate_size, spec.hidden_size, spec.mlp_bias)
        self.activation = swiglu if spec.gated else ACTIVATIONS[spec.activation]

    def forward(self, x: Tensor, norm: ElementwiseOp) -> Tensor:
        up_layers = [self.up] if self.gate is None else [self.gate, self.up]
        return apply_lora_linears([self.down], self.activation, *apply_lora_linears(up_layers, norm, x))[0]


def build_norm(spec: DecoderSpec, size: int) -> nn.Module:
    return LayerNorm(size, spec.eps) if spec.norm == "layer" else RMSNorm(size, spec.eps)


def compute_rotary(spec: DecoderSpec, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the cosine and sine of each token's rotary angles, [tokens, 1, head_dim / 2].

    Su et al. 2021, "RoFormer"; arXiv:2104.09864.
    """
    frequencies = torch.tensor(spec.rotary_frequencies, device=positions.device)
    angles = torch.outer(positions.float(), frequencies).unsqueeze(1)
    return angles.cos() * spec.rotary_scale, angles.sin() * spec.rotary_scale
