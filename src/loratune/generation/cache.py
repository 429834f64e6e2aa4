"""KV cache: the keys and values of running answers, and attention over them.

Each answer has a slot, without padding, and each token its true position. Here two answers are running, the
second with two guessed tokens, and a third begins with a prompt of four tokens (t was stored before, + is
stored by this call, . is free and never read):

    slot 0   t t t t t + . .
    slot 1   t t + + + . . .
    slot 2   + + + + . . . .

The new prompt is computed as a packed document and stored. The others have one or several query tokens, and
each attends to its own slot in its own call: on a CPU these calls are cheaper than reading everything that a
single call would have to mask. The positions of wrong guesses become free again.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from loratune.models.decoder import Decoder
from loratune.models.ops.attention import AttentionFn, packed_attention
from loratune.models.ops.threads import map_in_parallel
from loratune.system.memory import available_gpu_memory, available_memory


class KVCache:
    """The keys and values of several answers, in slots."""

    def __init__(self, decoder: Decoder, slots: int, capacity: int):
        """Allocate `slots` slots of `capacity` tokens each, prompts included."""
        spec, weight = decoder.spec, decoder.head_weight
        # A head's tokens are contiguous, because attention reads one head after another.
        shape = (spec.layers, slots, spec.kv_heads, capacity, spec.head_dim)
        # Not zeros, because the system provides no memory for what is never written.
        self.keys = torch.empty(shape, dtype=weight.dtype, device=weight.device)
        self.values = torch.empty_like(self.keys)
        self.group = spec.heads // spec.kv_heads  # heads that share keys
        self.lengths: list[int] = []  # tokens in each used slot; the used slots come first

    def prepare_attention(self, new_lengths: list[int], prompt_lengths: list[int]) -> AttentionFn:
        """Build the attention of one call of the decoder, and count what it stores.

        Args:
            new_lengths: the number of new tokens of each used slot, which come first in the call.
            prompt_lengths: the lengths of new prompts, which follow and take the next free slots.
        """
        used = sum(new_lengths)
        stored = list(zip(self.lengths, new_lengths, strict=True)) + [
            (0, length) for length in prompt_lengths
        ]
        places = self.compute_flat_index(
            [(slot, place) for slot, (old, new) in enumerate(stored) for place in range(old, old + new)]
        )
        masks = [
            build_causal_mask(new, old + new, self.group, like=self.keys)
            for (old, new) in stored[: len(new_lengths)]
        ]
        self.lengths = [old + new for old, new in stored]
        attend_within_prompts = packed_attention(prompt_lengths)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k = q.to(self.keys.dtype), k.to(self.keys.dtype)  # after rotation they may be more precise
            keys, values, attended = self.keys[layer], self.values[layer], torch.empty_like(q)
            keys.flatten(0, 2).index_copy_(0, places, k.flatten(0, 1))
            values.flatten(0, 2).index_copy_(0, places, v.flatten(0, 1))
            if new_lengths:
                attended[:used] = cached_attention(q[:used], new_lengths, keys, values=values, masks=masks)
            if prompt_lengths:
                attended[used:] = attend_within_prompts(layer, q[used:], k[used:], v[used:])
            return attended

        return attend

    def compute_flat_index(self, tokens: list[tuple[int, int]]) -> Tensor:
        """Compute where the heads of these tokens, given as (slot, place), are in a layer's flat memory.

        Returns [tokens x kv_heads].
        """
        _, _, kv_heads, capacity, _ = self.keys.shape
        slots, places = torch.tensor(tokens, device=self.keys.device).unsqueeze(-1).unbind(1)
        heads = slots * kv_heads + torch.arange(kv_heads, device=self.keys.device)
        return (heads * capacity + places).flatten()

    def truncate(self, slot: int, length: int) -> None:
        """Keep only the slot's first `length` tokens."""
        self.lengths[slot] = length

    def free_slot(self, slot: int) -> None:
        """Free a slot by moving the last used one into it, so that the used slots stay contiguous."""
        last = len(self.lengths) - 1
        if slot != last:
            self.lengths[slot] = self.lengths[last]
            self.copy_slot(last, slot, self.lengths[last])
        self.lengths.pop()

    def copy_prefix(self, slot: int, length: int) -> None:
        """Let the next free slot begin with the first `length` tokens of this one."""
        self.copy_slot(slot, len(self.lengths), length)
        self.lengths.append(length)

    @torch.inference_mode()  # also for a request that is cancelled between two calls of the model
    def copy_slot(self, source: int, target: int, length: int) -> None:
        for stored in (self.keys, self.values):
            stored[:, target, :, :length] = stored[:, source, :, :length]


def build_causal_mask(count: int, length: int, group: int, *, like: Tensor) -> Tensor:
    """Build the causal mask's last `count` rows, 0 or -inf, each repeated for the heads that share keys.

    Returns [count x group, length] with the dtype and device of `like`.
    """
    mask = torch.full((count, length), -math.inf, dtype=like.dtype, device=like.device).triu_(
        length - count + 1
    )
    return mask.repeat_interleave(group, 0)


def cached_attention(
    q: Tensor, new_lengths: list[int], keys: Tensor, *, values: Tensor, masks: list[Tensor]
) -> Tensor:
    """Compute the attention of each slot's new tokens to that slot.

    The queries of heads that share keys are laid out as one sequence, token by token, so that the keys need
    not be copied for each head.

    Args:
        q: [tokens, heads, head_dim], slot by slot.
        new_lengths: the number of these tokens for each slot.
        keys: [slots, kv_heads, capacity, head_dim], of one layer.
        values: the same shape.
        masks: one for each slot; a token sees as many of its slot's tokens as the mask is long.

    Returns:
        [tokens, heads, head_dim].
    """
    queries = q.unflatten(1, (keys.shape[1], -1)).transpose(0, 1)  # [kv_heads, tokens, group, head_dim]

    def attend_to_slot(slot: int, rows: Tensor, mask: Tensor) -> Tensor:
        stored = [x[slot, None, :, : mask.shape[1]] for x in (keys, values)]
        needed = mask if rows.shape[1] > 1 else None  # one token sees everything, faster without a mask
        return F.scaled_dot_product_attention(rows.flatten(1, 2)[None], *stored, attn_mask=needed)

    each = map if q.is_cuda else map_in_parallel
    attended = list(each(attend_to_slot, range(len(new_lengths)), queries.split(new_lengths, 1), masks))
    return torch.cat(attended, 2)[0].unflatten(1, queries.shape[1:3]).transpose(0, 1).flatten(1, 2)


def choose_slot_count(decoder: Decoder, max_slots: int, capacity: int) -> int:
    """Choose `max_slots`, or as many as fit into a quarter of the free memory; at least one."""
    spec, weight = decoder.spec, decoder.head_weight
    slot = 2 * spec.layers * capacity * spec.kv_heads * spec.head_dim * weight.element_size()
    free = available_gpu_memory(weight.device) if weight.is_cuda else available_memory()
    return max(1, min(max_slots, free // 4 // slot))
