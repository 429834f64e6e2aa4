"""The decoder computed with reference ops equals the decoder computed with fast ops."""

import pytest
import torch

from loratune.data.packing import pack
from loratune.models.lora import adapter_parameters
from loratune.models.ops import elementwise, linear, nll
from loratune.models.ops.attention import BlockAttention
from loratune.models.ops.reference import use_reference, uses_reference
from loratune.training.objective import target_nll
from support.plain_lora import add_random_lora, build_examples
from support.small_models import GPT2_SHAPES, LLAMA_SHAPES, build_reference, convert_to_decoder

SHAPES = {"cerebras-gpt": GPT2_SHAPES["cerebras-gpt"], **LLAMA_SHAPES}
FAST = {
    "attention": BlockAttention,
    "elementwise": elementwise.ElementwiseFunction,
    "linear": linear.LoraLinearFunction,
    "nll": nll.TokenNll,
}


def loss_and_gradients(shape: str, dropout: float) -> tuple[torch.Tensor, list[torch.Tensor]]:
    decoder = add_random_lora(convert_to_decoder(build_reference(SHAPES[shape])), dropout=dropout)
    torch.manual_seed(0)
    loss = target_nll(decoder, pack(build_examples())).mean()
    return loss, list(torch.autograd.grad(loss, list(adapter_parameters(decoder).values())))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("ops", [(op,) for op in FAST] + [tuple(FAST)], ids="+".join)
@pytest.mark.parametrize("shape", ["cerebras-gpt", "biases", "qwen3"])
def test_reference_ops_equal_fast_ops(shape, ops, dropout, monkeypatch):
    loss, gradients = loss_and_gradients(shape, dropout)
    for op in ops:  # a fast one that is still called would fail
        monkeypatch.setattr(FAST[op], "forward", None)
    with use_reference(*ops):
        plain_loss, plain_gradients = loss_and_gradients(shape, dropout)
    assert loss.item() == pytest.approx(plain_loss.item(), rel=1e-5)
    for fast, plain in zip(gradients, plain_gradients, strict=True):
        assert (fast - plain).norm() <= 1e-4 * plain.norm()


def test_fast_ops_are_restored_after_the_context():
    with use_reference("linear"):
        with use_reference("nll", "linear"):
            assert uses_reference("nll")
        assert uses_reference("linear") and not uses_reference("nll")
    assert not any(map(uses_reference, FAST))
