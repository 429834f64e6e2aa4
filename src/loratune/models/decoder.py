"""The decoder: GPT-2 and the Llama family, computed from a spec.

Tokens have no batch dimension: documents lie end to end, and who attends to whom is the caller's choice (`attend`).
So training on packed rows, filling a cache and writing with one are the same few lines.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from loratune.models.lora import Linear, feed
from loratune.models.ops.attention import Attend
from loratune.models.ops.elementwise import (
    LayerNorm,
    Operation,
    RootMeanSquareNorm,
    Rotate,
    gelu,
    gelu_tanh,
    relu,
    silu,
    swiglu,
    unchanged,
)
from loratune.models.spec import Spec

ACTIVATIONS = {"gelu_tanh": gelu_tanh, "gelu": gelu, "silu": silu, "relu": relu}
VOCABULARY_BLOCK = 1024  # words in one product: on AVX2, MKL is half again as fast as with all (RESULTS.md)


class Decoder(nn.Module):
    def __init__(self, spec: Spec):
        super().__init__()
        self.spec = spec
        self.embedding = nn.Embedding(spec.vocabulary, spec.width)
        self.positions = nn.Embedding(spec.max_positions, spec.width) if spec.rotary is None else None
        self.layers = nn.ModuleList(Layer(spec, number) for number in range(spec.layers))
        self.norm = norm_of(spec, spec.width)
        self.head = None if spec.tied_head else nn.Linear(spec.width, spec.vocabulary, bias=False)
        self.low_memory = False  # gradient checkpointing: a layer's inside is computed again when its gradient is
        self.requires_grad_(False)

    def forward(self, ids: Tensor, positions: Tensor, attend: Attend, wanted: Tensor | None = None) -> Tensor:
        """ids and positions [tokens] to the last hidden states, normed: [tokens, width], or [wanted, width].

        `wanted` are the numbers of the tokens whose hidden states are needed; the others end in the last layer's attention.
        """
        x = self.embedding(ids).float()  # the residual stream stays in fp32 whatever the weights are
        rotary = None
        if self.positions is not None:
            x = x + self.positions(positions)
        else:
            rotary = rotary_of(self.spec, positions)
        for layer in self.layers:
            inputs = (x, rotary, attend, wanted if layer is self.layers[-1] else None)
            x = checkpoint(layer, *inputs, use_reentrant=False) if self.low_memory and self.training else layer(*inputs)
        return self.norm(x)

    @property
    def head_weight(self) -> Tensor:
        """[vocabulary, width]"""
        return self.embedding.weight if self.head is None else self.head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, width] to [rows, vocabulary]"""
        h = hidden.to(self.head_weight.dtype)
        return torch.cat([F.linear(h, words) for words in self.head_weight.split(VOCABULARY_BLOCK)], -1)


class Layer(nn.Module):
    def __init__(self, spec: Spec, number: int):
        super().__init__()
        self.attention_norm = norm_of(spec, spec.width)
        self.attention = Attention(spec, number)
        self.mlp_norm = norm_of(spec, spec.width)
        self.mlp = Mlp(spec)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None, attend: Attend, wanted: Tensor | None = None) -> Tensor:
        attended = self.attention(x, self.attention_norm.operation, rotary, attend, wanted)
        # Added in place: where the products are in bf16, x + y would make two copies in fp32 instead of one.
        x = attended.to(x.dtype).add_(x if wanted is None else x[wanted])
        return self.mlp(x, self.mlp_norm.operation).to(x.dtype).add_(x)


class Attention(nn.Module):
    def __init__(self, spec: Spec, number: int):
        super().__init__()
        self.number, self.head_dim = number, spec.head_dim
        queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        self.widths = [queries, keys, keys]
        if spec.fused_qkv:
            self.qkv = Linear(spec.width, sum(self.widths), spec.qkv_bias)
        else:
            self.query = Linear(spec.width, queries, spec.qkv_bias)
            self.key = Linear(spec.width, keys, spec.qkv_bias)
            self.value = Linear(spec.width, keys, spec.qkv_bias)
        self.fused = spec.fused_qkv
        self.query_norm = norm_of(spec, spec.head_dim) if spec.qk_norm else nn.Identity()
        self.key_norm = norm_of(spec, spec.head_dim) if spec.qk_norm else nn.Identity()
        self.output = Linear(queries, spec.width, spec.output_bias)

    def forward(
        self, x: Tensor, norm: Operation, rotary: tuple[Tensor, Tensor] | None, attend: Attend, wanted: Tensor | None
    ) -> Tensor:
        q, k, v = self.qkv_of(x, norm)
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in (q, k, v))
        q, k = self.query_norm(q), self.key_norm(k)
        if rotary is not None:
            q, k = Rotate.apply(q, *rotary), Rotate.apply(k, *rotary)
        attended = attend(self.number, q, k, v).flatten(1)
        return feed([self.output], unchanged, attended if wanted is None else attended[wanted])[0]

    def qkv_of(self, x: Tensor, norm: Operation) -> tuple[Tensor, ...]:
        if self.fused:
            return feed([self.qkv], norm, x)[0].split(self.widths, -1)
        return feed([self.query, self.key, self.value], norm, x)


class Mlp(nn.Module):
    def __init__(self, spec: Spec):
        super().__init__()
        self.gate = Linear(spec.width, spec.mlp_width, spec.mlp_bias) if spec.gated else None
        self.up = Linear(spec.width, spec.mlp_width, spec.mlp_bias)
        self.down = Linear(spec.mlp_width, spec.width, spec.mlp_bias)
        self.activation = swiglu if spec.gated else ACTIVATIONS[spec.activation]

    def forward(self, x: Tensor, norm: Operation) -> Tensor:
        inward = [self.up] if self.gate is None else [self.gate, self.up]
        return feed([self.down], self.activation, *feed(inward, norm, x))[0]


def norm_of(spec: Spec, width: int) -> nn.Module:
    return LayerNorm(width, spec.eps) if spec.norm == "layer" else RootMeanSquareNorm(width, spec.eps)


def rotary_of(spec: Spec, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each token's angles, [tokens, 1, head_dim / 2] (Su et al. 2021, "RoFormer"; arXiv:2104.09864)."""
    frequencies = torch.tensor(spec.rotary, device=positions.device)
    angles = torch.outer(positions.float(), frequencies).unsqueeze(1)
    return angles.cos() * spec.rotary_scale, angles.sin() * spec.rotary_scale
