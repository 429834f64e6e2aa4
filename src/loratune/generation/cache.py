"""The keys and values of answers that are being written, and attention over them.

Each answer has a slot; no slot has padding, every token its true position. Two answers are being written, the
second with two guessed tokens, and a third, of four prompt tokens, begins (t was stored before, + is stored
by this call, . is free and never read):

    slot 0   t t t t t + . .
    slot 1   t t + + + . . .
    slot 2   + + + + . . . .

The new prompt is computed as a packed document and stored; the others ask with one token each, or some, and
each reads its own tokens in a call of its own. On a CPU the calls are cheaper than reading what a call for
all would have to mask. Guesses that turn out wrong are forgotten: their places are free again.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from loratune.models.ops.attention import AttentionFn, packed_attention
from loratune.models.ops.threads import map_in_parallel
from loratune.system.memory import available_gpu_memory, available_memory


class KVCache:
    def __init__(self, decoder, slots: int, capacity: int):
        """Room for `slots` answers of `capacity` tokens, prompts included."""
        spec, weight = decoder.spec, decoder.head_weight
        # A head's tokens lie together: a call reads one head after the other.
        shape = (spec.layers, slots, spec.kv_heads, capacity, spec.head_dim)
        # Not zeros: memory that is never written is never taken from the system.
        self.keys = torch.empty(shape, dtype=weight.dtype, device=weight.device)
        self.values = torch.empty_like(self.keys)
        self.group = spec.heads // spec.kv_heads  # heads that share keys
        self.lengths: list[int] = []  # tokens in each used slot; these are the first ones

    def prepare_attention(self, new_lengths: list[int], prompt_lengths: list[int]) -> AttentionFn:
        """Attention for one call of the decoder: so many more tokens of each used slot, then whole prompts of
        these lengths.

        The prompts take the next free slots; the lengths count what the call stores from now on.
        """
        used = sum(new_lengths)
        stored = list(zip(self.lengths, new_lengths, strict=True)) + [
            (0, length) for length in prompt_lengths
        ]
        places = self.compute_flat_index(
            [(slot, place) for slot, (old, new) in enumerate(stored) for place in range(old, old + new)]
        )
        masks = [
            build_causal_mask(new, old + new, self.group, self.keys)
            for (old, new) in stored[: len(new_lengths)]
        ]
        self.lengths = [old + new for old, new in stored]
        among_themselves = packed_attention(prompt_lengths)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            # Where they were rotated, they may be more precise.
            q, k = (
                q.to(self.keys.dtype),
                k.to(self.keys.dtype),
            )
            keys, values, attended = self.keys[layer], self.values[layer], torch.empty_like(q)
            keys.flatten(0, 2).index_copy_(0, places, k.flatten(0, 1))
            values.flatten(0, 2).index_copy_(0, places, v.flatten(0, 1))
            if new_lengths:
                attended[:used] = cached_attention(q[:used], new_lengths, keys, values, masks)
            if prompt_lengths:
                attended[used:] = among_themselves(layer, q[used:], k[used:], v[used:])
            return attended

        return attend

    def compute_flat_index(self, tokens: list[tuple[int, int]]) -> Tensor:
        """Where the heads of these tokens, each a slot and a place in it, lie in a layer: [tokens x
        kv_heads].
        """
        _, _, kv_heads, capacity, _ = self.keys.shape
        slots, places = torch.tensor(tokens, device=self.keys.device).unsqueeze(-1).unbind(1)
        heads = slots * kv_heads + torch.arange(kv_heads, device=self.keys.device)
        return (heads * capacity + places).flatten()

    def truncate(self, slot: int, length: int) -> None:
        """All but the slot's first tokens."""
        self.lengths[slot] = length

    def free_slot(self, slot: int) -> None:
        """The last used slot moves into the gap, so that the used ones stay together and no call copies the
        cache.
        """
        last = len(self.lengths) - 1
        if slot != last:
            self.lengths[slot] = self.lengths[last]
            self.copy_slot(last, slot, self.lengths[last])
        self.lengths.pop()

    def copy_prefix(self, slot: int, length: int) -> None:
        """The next free slot begins with the first `length` tokens of this one."""
        self.copy_slot(slot, len(self.lengths), length)
        self.lengths.append(length)

    @torch.inference_mode()  # also for a request that is cancelled between two calls of the model
    def copy_slot(self, source: int, target: int, length: int) -> None:
        for stored in (self.keys, self.values):
            stored[:, target, :, :length] = stored[:, source, :, :length]


def build_causal_mask(count: int, length: int, group: int, like: Tensor) -> Tensor:
    """The causal mask's last rows, 0 or -inf, each as often as heads share keys: [count x group, length]."""
    mask = torch.full((count, length), -math.inf, dtype=like.dtype, device=like.device).triu_(
        length - count + 1
    )
    return mask.repeat_interleave(group, 0)


def cached_attention(
    q: Tensor, new_lengths: list[int], keys: Tensor, values: Tensor, masks: list[Tensor]
) -> Tensor:
    """q [tokens, heads, head_dim] to the same shape; keys and values [slots, kv_heads, capacity, head_dim].

    The tokens are so many `more` of each slot, and see as many of it as their mask is long. The queries of a
    group stand where a sequence usually does, token by token: they share their keys without a copy for each
    head.
    """
    asking = q.unflatten(1, (keys.shape[1], -1)).transpose(0, 1)  # [kv_heads, tokens, group, head_dim]

    def of_slot(slot: int, rows: Tensor, mask: Tensor) -> Tensor:
        seen = [x[slot, None, :, : mask.shape[1]] for x in (keys, values)]
        needed = mask if rows.shape[1] > 1 else None  # one token sees everything, faster without a mask
        return F.scaled_dot_product_attention(rows.flatten(1, 2)[None], *seen, attn_mask=needed)

    each = map if q.is_cuda else map_in_parallel
    attended = list(each(of_slot, range(len(new_lengths)), asking.split(new_lengths, 1), masks))
    return torch.cat(attended, 2)[0].unflatten(1, asking.shape[1:3]).transpose(0, 1).flatten(1, 2)


def choose_slot_count(decoder, max_slots: int, capacity: int) -> int:
    """As many as wanted, or as many as a quarter of the free memory has room for; at least one."""
    spec, weight = decoder.spec, decoder.head_weight
    slot = 2 * spec.layers * capacity * spec.kv_heads * spec.head_dim * weight.element_size()
    free = available_gpu_memory(weight.device) if weight.is_cuda else available_memory()
    return max(1, min(max_slots, free // 4 // slot))
