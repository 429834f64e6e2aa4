"""The training step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from loratune.models.lora import trained_parameters
from loratune.models.ops.attention import packed_attention
from loratune.system.memory import is_out_of_memory
from loratune.training.objective import target_loss

# The first is 0.9 elsewhere: in runs of minutes, which have some hundred steps, as many tokens teach more
# when the momentum forgets faster (RESULTS.md, Momentum).
ADAMW_BETAS = (0.5, 0.999)


class NonFiniteError(Exception):
    """The loss or a gradient is not a number any more."""


class OutOfMemoryError(Exception):
    """A micro-batch did not fit into the memory."""


@dataclass(frozen=True)
class StepResult:
    loss: float  # mean over the step's target tokens, in nats
    grad_norm: float  # before clipping
    tokens: int  # fed, prompts included
    targets: int


def train_step(decoder, optimizer, micro_batches: Sequence, learning_rate: float, clip: float) -> StepResult:
    """One optimiser step over all micro-batches; the result does not depend on how the rows are cut into
    them.

    Raises NonFinite when the loss or a gradient is not finite, and OutOfMemory; both leave the adapter and
    the optimiser as they were.
    """
    targets = sum(len(batch.targets) for batch in micro_batches)
    try:
        loss = accumulate_gradients(decoder, micro_batches, targets)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        loss = None  # what was computed is let go of with the error, when this block ends
    if loss is None:
        optimizer.zero_grad(set_to_none=False)
        raise OutOfMemoryError
    grad_norm = torch.nn.utils.clip_grad_norm_(trained_parameters(decoder), clip).item()
    finite = torch.tensor([loss, grad_norm]).isfinite().all()
    if finite:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    if not finite:
        raise NonFiniteError(f"the loss is {loss} and the gradient norm {grad_norm}")
    return StepResult(loss, grad_norm, sum(len(batch.input_ids) for batch in micro_batches), targets)


def accumulate_gradients(decoder, micro_batches: Sequence, targets: int) -> float:
    """Add the step's gradients to the parameters'; returns its loss."""
    loss = 0.0
    for batch in micro_batches:
        # Divided by the targets of the whole step, not of the micro-batch: a mean of means would weigh them
        # unequally.
        part = target_loss(decoder, batch, packed_attention(batch.lengths)) / targets
        part.backward()
        loss += part.item()
    return loss


def adamw(decoder, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019; arXiv:1711.05101) over the adapter's matrices; the step sets the
    learning rate.
    """
    for parameter in trained_parameters(decoder):
        # Here once and for all: made anew in each step, they would lie scattered and keep freed memory in
        # pieces.
        parameter.grad = torch.zeros_like(parameter)
    return torch.optim.AdamW(
        trained_parameters(decoder), lr=0.0, betas=ADAMW_BETAS, weight_decay=weight_decay, fused=True
    )
