"""An objective is one class, which the step and the validation use."""

import pytest
import torch
import torch.nn.functional as F

from loratune.data.packing import pack
from loratune.models.lora import adapter_parameters
from loratune.training.objective import ResponseNll
from loratune.training.step import train_step
from loratune.training.validate import compute_validation_loss
from support.plain_lora import assert_same, build_adapted_decoder, build_examples
from support.small_models import compute_logits


class EarlyTokensFirst(ResponseNll):
    """The later a target comes in its document, the less it counts."""

    def target_weights(self, batch):
        return 1 / (1 + batch.position_ids[batch.target_index].float())

    def weight(self, batch):
        return self.target_weights(batch).sum().item()

    def losses(self, decoder, batch):
        return self.target_weights(batch) * super().losses(decoder, batch)


def plain_loss_and_gradients(decoder, rows):
    """The weighted mean of cross-entropies, each row alone, by autograd over all logits."""
    total, weight = 0.0, 0.0
    for row in rows:
        positions = torch.arange(len(row.prompt) - 1, len(row.prompt) + len(row.response) - 1)
        row_logits = compute_logits(decoder, torch.tensor(row.prompt + row.response))[positions]
        weights = 1 / (1 + positions.float())
        nll = F.cross_entropy(row_logits, torch.tensor(row.response), reduction="none")
        total, weight = total + (weights * nll).sum(), weight + weights.sum()
    loss = total / weight
    return loss.item(), torch.autograd.grad(loss, list(adapter_parameters(decoder).values()))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_weighted_objective_trains_and_validates_as_defined(name):
    rows, objective, rate = build_examples(), EarlyTokensFirst(), 1e3
    expected = plain_loss_and_gradients(build_adapted_decoder(name), rows)
    for groups in ([rows], [rows[:2], rows[2:]]):
        decoder, batches = build_adapted_decoder(name), [objective.collate(group) for group in groups]
        assert compute_validation_loss(decoder, batches, objective) == pytest.approx(expected[0], rel=1e-5)
        before = [parameter.detach().clone() for parameter in adapter_parameters(decoder).values()]
        optimizer = torch.optim.SGD(adapter_parameters(decoder).values(), lr=0.0)
        result = train_step(decoder, optimizer, batches, objective=objective, learning_rate=rate, clip=1e9)
        after = adapter_parameters(decoder).values()
        gradients = [(old - new.detach()) / rate for old, new in zip(before, after, strict=True)]
        assert_same((result.loss, gradients), expected, 1e-4)
        assert result.weight == pytest.approx(sum(objective.weight(pack(group)) for group in groups))
