"""Rows laid end to end without padding, and which rows form which optimiser step.

Three rows with 2, 3 and 1 prompt tokens (p) and 2, 1 and 2 response tokens (r); the last response token is only a
target, so it is not fed:

    fed        p p r   p p p   p r
    position   0 1 2   0 1 2   0 1
    target       r r       r   r r
    row          0 0       1   2 2

The loss of a target belongs to the hidden state one token before it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from loratune.data.example import Encoded


@dataclass(frozen=True)
class Batch:
    ids: Tensor  # [tokens]
    positions: Tensor  # [tokens], from 0 in each document
    lengths: list[int]  # tokens of each document
    target_index: Tensor  # [targets]: the token whose hidden state predicts the target
    targets: Tensor  # [targets]: token ids
    rows: Tensor  # [targets]: number of the document

    def to(self, device: str) -> "Batch":
        moved = (tensor.to(device) for tensor in (self.ids, self.positions, self.target_index, self.targets, self.rows))
        ids, positions, target_index, targets, rows = moved
        return Batch(ids, positions, self.lengths, target_index, targets, rows)


def fed_tokens(row: Encoded) -> int:
    return len(row.prompt) + len(row.response) - 1


def pack(rows: Sequence[Encoded]) -> Batch:
    """One batch of all the rows. A first response token without a prompt before it cannot be predicted: no target."""
    ids, positions, lengths, target_index, targets, owners = [], [], [], [], [], []
    start = 0
    for number, row in enumerate(rows):
        length = fed_tokens(row)
        ids += (row.prompt + row.response)[:length]
        positions += range(length)
        lengths.append(length)
        first = max(len(row.prompt), 1)
        target_index += range(start + first - 1, start + length)
        targets += row.response[first - len(row.prompt) :]
        owners += [number] * (length - first + 1)
        start += length
    whole = (torch.tensor(values, dtype=torch.long) for values in (ids, positions, target_index, targets, owners))
    ids, positions, target_index, targets, owners = whole
    return Batch(ids, positions, lengths, target_index, targets, owners)


def fill(lengths: Sequence[int], order: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Cut `order` into consecutive groups of at most `limit` tokens; a longer row is a group of its own."""
    group, used = [], 0
    for row in order:
        if group and used + lengths[row] > limit:
            yield group
            group, used = [], 0
        group.append(row)
        used += lengths[row]
    if group:
        yield group


def fit_together(lengths: Sequence[int], rows: Sequence[int], limit: int) -> list[list[int]]:
    """Divide `rows` into few groups of at most `limit` tokens; a longer row is a group of its own.

    The longest first, each into the fullest group that has room for it (best fit decreasing: Johnson 1973, chapter 2).
    """
    groups: list[list[int]] = []
    room: list[int] = []
    for row in sorted(rows, key=lengths.__getitem__, reverse=True):
        fitting = [number for number, left in enumerate(room) if left >= lengths[row]]
        if fitting:
            fullest = min(fitting, key=room.__getitem__)
            groups[fullest].append(row)
            room[fullest] -= lengths[row]
        else:
            groups.append([row])
            room.append(limit - lengths[row])
    return groups


def epoch_steps(lengths: Sequence[int], batch_tokens: int, micro_tokens: int, seed: int, epoch: int) -> list[list[list[int]]]:
    """The optimiser steps of one epoch, each a list of micro-batches of row numbers: a function of (seed, epoch) alone."""
    order = np.random.default_rng((seed, epoch)).permutation(len(lengths)).tolist()
    return [fit_together(lengths, step, micro_tokens) for step in fill(lengths, order, batch_tokens)]


def all_steps(
    lengths: Sequence[int], batch_tokens: int, micro_tokens: int, seed: int, start: int = 0
) -> Iterator[list[list[int]]]:
    """The optimiser steps of all epochs without end, from step `start` on."""
    epoch = 0
    while True:
        steps = epoch_steps(lengths, batch_tokens, micro_tokens, seed, epoch)
        yield from steps[start:]
        start, epoch = max(start - len(steps), 0), epoch + 1


def steps_in(epochs: float, lengths: Sequence[int], batch_tokens: int, micro_tokens: int, seed: int) -> int:
    """How many optimiser steps `epochs` passes take; part of a pass is that part of its steps, rounded up."""
    whole = int(epochs)
    counts = [len(epoch_steps(lengths, batch_tokens, micro_tokens, seed, epoch)) for epoch in range(whole + 1)]
    return sum(counts[:whole]) + math.ceil((epochs - whole) * counts[whole])
