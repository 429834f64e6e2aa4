"""Sequence packing: join rows without padding, and plan which rows form which optimiser step.

Three rows with 2, 3 and 1 prompt tokens (p) and 2, 1 and 2 response tokens (r); the last response token is
only a target, not an input:

    input      p p r   p p p   p r
    position   0 1 2   0 1 2   0 1
    target       r r       r   r r
    example      0 0       1   2 2

The loss of a target belongs to the hidden state one token before it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from loratune.data.example import Example


@dataclass(frozen=True)
class Batch:
    """Packed rows, each a document of its own."""

    input_ids: Tensor  # [tokens]
    position_ids: Tensor  # [tokens], from 0 in each document
    lengths: list[int]  # tokens of each document
    target_index: Tensor  # [targets]: the token whose hidden state predicts the target
    targets: Tensor  # [targets]: token ids
    example_index: Tensor  # [targets]: index of the document

    def to(self, device: str | torch.device) -> "Batch":
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            position_ids=self.position_ids.to(device),
            target_index=self.target_index.to(device),
            targets=self.targets.to(device),
            example_index=self.example_index.to(device),
        )


def input_length(example: Example) -> int:
    """Return the number of a row's input tokens: all but the last one."""
    return len(example.prompt) + len(example.response) - 1


def pack(examples: Sequence[Example]) -> Batch:
    """Pack rows into one batch.

    A row without a prompt has no target for its first response token, because nothing precedes it. Tokens of
    a conversation that are not learned are no targets.
    """
    ids, positions, lengths, target_index, targets, owners = [], [], [], [], [], []
    start = 0
    for number, example in enumerate(examples):
        length = input_length(example)
        ids += (example.prompt + example.response)[:length]
        positions += range(length)
        lengths.append(length)
        first = max(len(example.prompt), 1)
        predicted = range(first, length + 1)
        if example.context:
            predicted = [place for place in predicted if example.is_learned(place - len(example.prompt))]
        target_index += [start + place - 1 for place in predicted]
        targets += [example.response[place - len(example.prompt)] for place in predicted]
        owners += [number] * len(predicted)
        start += length
    tensors = (
        torch.tensor(values, dtype=torch.long) for values in (ids, positions, target_index, targets, owners)
    )
    ids, positions, target_index, targets, owners = tensors
    return Batch(ids, positions, lengths, target_index, targets, owners)


def batch_in_order(lengths: Sequence[int], order: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Split `order` into consecutive groups of at most `limit` tokens; a longer row is a group of its own."""
    group, used = [], 0
    for row in order:
        if group and used + lengths[row] > limit:
            yield group
            group, used = [], 0
        group.append(row)
        used += lengths[row]
    if group:
        yield group


def pack_best_fit(lengths: Sequence[int], rows: Sequence[int], limit: int) -> list[list[int]]:
    """Divide `rows` into few groups of at most `limit` tokens; a longer row is a group of its own.

    Rows are placed longest first, each into the fullest group with room for it (best-fit decreasing: Johnson
    1973, chapter 2).
    """
    groups: list[list[int]] = []
    room: list[int] = []
    for row in sorted(rows, key=lengths.__getitem__, reverse=True):
        fitting = [number for number, free in enumerate(room) if free >= lengths[row]]
        if fitting:
            fullest = min(fitting, key=room.__getitem__)
            groups[fullest].append(row)
            room[fullest] -= lengths[row]
        else:
            groups.append([row])
            room.append(limit - lengths[row])
    return groups


def plan_epoch(
    lengths: Sequence[int], batch_tokens: int, micro_tokens: int, *, seed: int, epoch: int
) -> list[list[list[int]]]:
    """Plan the optimiser steps of one epoch; the order of rows depends on (seed, epoch) alone.

    Args:
        lengths: tokens of each row.
        batch_tokens: the most tokens of an optimiser step.
        micro_tokens: the most tokens of a micro-batch.
        seed: of the random order.
        epoch: counted from 0.

    Returns:
        For each step its micro-batches, each a list of row numbers.
    """
    order = np.random.default_rng((seed, epoch)).permutation(len(lengths)).tolist()
    return [
        pack_best_fit(lengths, step, micro_tokens) for step in batch_in_order(lengths, order, batch_tokens)
    ]


def iterate_steps(
    lengths: Sequence[int], batch_tokens: int, micro_tokens: int, *, seed: int, start: int = 0
) -> Iterator[list[list[int]]]:
    """Yield the optimiser steps of all epochs, without end, from step `start` on."""
    epoch = 0
    while True:
        steps = plan_epoch(lengths, batch_tokens, micro_tokens, seed=seed, epoch=epoch)
        yield from steps[start:]
        start, epoch = max(start - len(steps), 0), epoch + 1


def count_steps(
    epochs: float, lengths: Sequence[int], batch_tokens: int, *, micro_tokens: int, seed: int
) -> int:
    """Count the optimiser steps of `epochs`; a fraction is that share of an epoch's steps, rounded up."""
    full_epochs = int(epochs)
    counts = [
        len(plan_epoch(lengths, batch_tokens, micro_tokens, seed=seed, epoch=epoch))
        for epoch in range(full_epochs + 1)
    ]
    return sum(counts[:full_epochs]) + math.ceil((epochs - full_epochs) * counts[full_epochs])
