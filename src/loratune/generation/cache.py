"""The keys and values of answers that are being written, and attention over them.

Each answer has a slot; no slot has padding, every token its true position. Two answers are being written and a third, of
four prompt tokens, begins (t was stored before, + is stored by this call, . is free and masked):

    slot 0   t t t t t +  .  .
    slot 1   t t +  .  .  .  .  .
    slot 2   +  +  +  +  .  .  .  .

The new prompt is computed as a packed document and stored; the others ask with one token each, all in one call.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from loratune.models.attention import Attend, packed_attention


class Cache:
    def __init__(self, decoder, slots: int, capacity: int):
        """Room for `slots` answers of `capacity` tokens, prompts included."""
        spec, weight = decoder.spec, decoder.head_weight
        shape = (spec.layers, slots, spec.kv_heads, capacity, spec.head_dim)
        self.keys = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.values = torch.zeros_like(self.keys)
        self.lengths: list[int] = []  # tokens in each used slot; these are the first ones

    def attend(self, prompts: list[int]) -> Attend:
        """Attention for one call of the decoder: a token for each used slot, then whole prompts of these lengths.

        The prompts take the next free slots; the lengths count what the call stores from now on.
        """
        before, device = self.lengths, self.keys.device
        used, longest = len(before), max(before, default=0) + 1
        ends = torch.tensor(before, dtype=torch.long, device=device)
        slots = torch.arange(used, device=device)
        seen = (torch.arange(longest, device=device) <= ends.unsqueeze(1))[:, None, None]  # [used, 1, 1, longest]
        among_themselves = packed_attention(prompts)
        self.lengths = [length + 1 for length in before] + prompts

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self.keys[layer], self.values[layer]
            keys[slots, :, ends], values[slots, :, ends] = k[:used], v[:used]
            for stored, new in ((keys, k), (values, v)):
                for slot, document in enumerate(new[used:].split(prompts), used):
                    stored[slot, :, : len(document)] = document.transpose(0, 1)
            if not prompts:
                return one_token_each(q, keys[:used, :, :longest], values[:used, :, :longest], seen)
            begun = among_themselves(layer, q[used:], k[used:], v[used:])
            if not used:
                return begun
            return torch.cat([one_token_each(q[:used], keys[:used, :, :longest], values[:used, :, :longest], seen), begun])

        return attend

    def free(self, slot: int) -> None:
        """The last used slot moves into the gap, so that the used ones stay together and no call copies the cache."""
        last = len(self.lengths) - 1
        if slot != last:
            length = self.lengths[last]
            self.keys[:, slot, :, :length] = self.keys[:, last, :, :length]
            self.values[:, slot, :, :length] = self.values[:, last, :, :length]
            self.lengths[slot] = length
        self.lengths.pop()


def one_token_each(q: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    """q [rows, heads, head_dim], keys and values [rows, kv_heads, longest, head_dim] to [rows, heads, head_dim].

    The queries of a group stand where a sequence usually does: they share their keys without a copy for each head.
    """
    grouped = q.unflatten(1, (keys.shape[1], -1))
    return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=seen).flatten(1, 2)
