"""Several processes take the same step as one process with all micro-batches."""

import pytest
import torch

from loratune.data.packing import pack
from loratune.models.lora import adapter_parameters
from loratune.training.distributed import World
from loratune.training.objective import ResponseNll
from loratune.training.step import adamw, train_step
from support.plain_lora import assert_same, build_adapted_decoder, build_examples


class Twins(World):
    """Two processes with the same micro-batches, of which only this one runs."""

    def sum(self, tensor):
        return tensor.mul_(2)


def take_step(batches, world):
    decoder = build_adapted_decoder("llama")
    optimizer = adamw(decoder, 0.0)
    result = train_step(
        decoder, optimizer, batches, objective=ResponseNll(), learning_rate=1e-2, clip=0.1, world=world
    )
    return result, [parameter.detach() for parameter in adapter_parameters(decoder).values()]


def test_two_processes_take_the_same_step_as_one():
    batch = pack(build_examples())
    whole, expected = take_step([batch, batch], World())
    half, parameters = take_step([batch], Twins())
    assert (half.weight, half.loss) == (whole.weight, pytest.approx(whole.loss))
    assert half.grad_norm == pytest.approx(whole.grad_norm)
    assert_same((half.loss, parameters), (whole.loss, expected), 1e-5)


def test_single_process_exchanges_nothing_and_several_are_refused():
    tensor = torch.ones(3)
    assert World().sum(tensor) is tensor and World().broadcast(tensor) is tensor
    for operation in (World(rank=1, size=2).sum, World(rank=1, size=2).broadcast):
        with pytest.raises(NotImplementedError):
            operation(tensor)
    with pytest.raises(ValueError, match="rank 2"):
        World(rank=2, size=2)
