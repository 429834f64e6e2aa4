"""Take one training step: forward and backward passes over micro-batches, clipping, optimiser."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from loratune.data.packing import Batch
from loratune.models.decoder import Decoder
from loratune.models.lora import adapter_parameters
from loratune.system.memory import is_out_of_memory
from loratune.training.distributed import ONE_PROCESS, World
from loratune.training.objective import Objective

# The first is 0.9 by default: runs of minutes, with some hundred steps, reach a lower loss with a shorter
# momentum.
ADAMW_BETAS = (0.5, 0.999)


class NonFiniteError(Exception):
    """The loss or a gradient is infinite or NaN."""


class OutOfMemoryError(Exception):
    """A micro-batch does not fit into memory."""


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step measured."""

    loss: float  # the sum of the step's losses divided by its weight; in nats a token for ResponseNll
    grad_norm: float  # before clipping
    tokens: int  # input tokens, prompts included
    weight: float  # the divisor of the losses; for ResponseNll the number of target tokens


def train_step(
    decoder: Decoder,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[Batch],
    *,
    objective: Objective,
    learning_rate: float,
    clip: float,
    world: World = ONE_PROCESS,
) -> StepResult:
    """Take one optimiser step over all micro-batches; the result does not depend on their sizes.

    Args:
        decoder: with an adapter, the only part that is trained.
        optimizer: from `adamw`.
        micro_batches: this process's share of the step, each computed on its own to save memory.
        objective: what is minimised.
        learning_rate: of this step.
        clip: the largest norm of the gradient; a longer one is scaled down to it.
        world: the processes whose micro-batches make up the step.

    Raises:
        NonFiniteError: the loss or a gradient is not finite.
        OutOfMemoryError: a micro-batch does not fit into memory.
            Neither error changes the adapter or the optimiser's state.
    """
    parameters = adapter_parameters(decoder)
    weight = sum_over_world(sum(objective.weight(batch) for batch in micro_batches), world)
    try:
        loss = accumulate_gradients(decoder, micro_batches, objective, weight=weight)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        loss = None  # handled below, where the error no longer holds the tensors of the failed pass
    if loss is None:
        optimizer.zero_grad(set_to_none=False)
        raise OutOfMemoryError
    for parameter in parameters.values():
        if parameter.grad is not None:
            world.sum(parameter.grad)
    loss = sum_over_world(loss, world)
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters.values(), clip).item()
    finite = torch.tensor([loss, grad_norm]).isfinite().all()
    if finite:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    if not finite:
        raise NonFiniteError(f"the loss is {loss} and the gradient norm {grad_norm}")
    return StepResult(loss, grad_norm, sum(len(batch.input_ids) for batch in micro_batches), weight)


def accumulate_gradients(
    decoder: Decoder, micro_batches: Sequence[Batch], objective: Objective, *, weight: float
) -> float:
    """Add the step's gradients to the parameters' and return the loss of these micro-batches."""
    loss = 0.0
    for batch in micro_batches:
        # The divisor is the weight of the whole step, because a mean of the micro-batches' means would weigh
        # their targets unequally.
        part = objective.losses(decoder, batch).sum() / weight
        part.backward()
        loss += part.item()
    return loss


def sum_over_world(value: float, world: World) -> float:
    return world.sum(torch.tensor(value, dtype=torch.float64)).item()


def adamw(decoder: Decoder, weight_decay: float, world: World = ONE_PROCESS) -> torch.optim.AdamW:
    """Build AdamW over the adapter's matrices, after copying them from rank 0 to all ranks.

    `train_step` sets the learning rate. Loshchilov & Hutter 2019; arXiv:1711.05101.
    """
    parameters = adapter_parameters(decoder)
    for parameter in parameters.values():
        world.broadcast(parameter.data)
        # Allocated once, because gradients that are allocated in each step fragment the memory.
        parameter.grad = torch.zeros_like(parameter)
    return torch.optim.AdamW(
        parameters.values(), lr=0.0, betas=ADAMW_BETAS, weight_decay=weight_decay, fused=True
    )
