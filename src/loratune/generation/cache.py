"""The keys and values of answers that are being written, and attention over them.

Each answer has a slot; no slot has padding, every token its true position. Two answers are being written and a third, of
four prompt tokens, begins (t was stored before, + is stored by this call, . is free and never read):

    slot 0   t t t t t + . .
    slot 1   t t + . . . . .
    slot 2   + + + + . . . .

The new prompt is computed as a packed document and stored; the others ask with one token each, and each reads its own
tokens in a call of its own. On a CPU the calls are cheaper than reading what a call for all would have to mask.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from loratune.models.attention import Attend, packed_attention


class Cache:
    def __init__(self, decoder, slots: int, capacity: int):
        """Room for `slots` answers of `capacity` tokens, prompts included."""
        spec, weight = decoder.spec, decoder.head_weight
        shape = (spec.layers, slots, capacity, spec.kv_heads, spec.head_dim)
        # Not zeros: memory that is never written is never taken from the system.
        self.keys = torch.empty(shape, dtype=weight.dtype, device=weight.device)
        self.values = torch.empty_like(self.keys)
        self.lengths: list[int] = []  # tokens in each used slot; these are the first ones

    def attend(self, prompts: list[int]) -> Attend:
        """Attention for one call of the decoder: a token for each used slot, then whole prompts of these lengths.

        The prompts take the next free slots; the lengths count what the call stores from now on.
        """
        used, capacity = len(self.lengths), self.keys.shape[2]
        places = [slot * capacity + length for slot, length in enumerate(self.lengths)]
        for slot, length in enumerate(prompts, used):
            places += range(slot * capacity, slot * capacity + length)
        places = torch.tensor(places, device=self.keys.device)
        continued = [length + 1 for length in self.lengths]
        among_themselves = packed_attention(prompts)
        self.lengths = continued + prompts

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values, attended = self.keys[layer], self.values[layer], torch.empty_like(q)
            keys.flatten(0, 1).index_copy_(0, places, k)
            values.flatten(0, 1).index_copy_(0, places, v)
            if continued:
                attended[:used] = one_token_each(q[:used], keys, values, continued)
            if prompts:
                attended[used:] = among_themselves(layer, q[used:], k[used:], v[used:])
            return attended

        return attend

    def free(self, slot: int) -> None:
        """The last used slot moves into the gap, so that the used ones stay together and no call copies the cache."""
        last = len(self.lengths) - 1
        if slot != last:
            length = self.lengths[last]
            self.keys[:, slot, :length] = self.keys[:, last, :length]
            self.values[:, slot, :length] = self.values[:, last, :length]
            self.lengths[slot] = length
        self.lengths.pop()


def one_token_each(q: Tensor, keys: Tensor, values: Tensor, lengths: list[int]) -> Tensor:
    """q [rows, heads, head_dim] to the same shape; keys and values [slots, capacity, kv_heads, head_dim].

    A row sees as many tokens of its slot as `lengths` says. The queries of a group stand where a sequence usually does: they
    share their keys without a copy for each head.
    """
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    rows = q.unflatten(1, (keys.shape[1], -1)).split(1)
    own = [
        (row, keys[slot, None, :, :length], values[slot, None, :, :length])
        for slot, (row, length) in enumerate(zip(rows, lengths, strict=True))
    ]
    return torch.cat([F.scaled_dot_product_attention(*one) for one in own]).flatten(1, 2)
