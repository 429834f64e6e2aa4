"""The merged, prepacked model gives the same logits, and the weights are restored afterwards."""

import pytest
import torch

from loratune.models import merge
from loratune.models.load import set_precision
from loratune.models.lora import add_lora, named_linears, without_adapter
from loratune.models.merge import compute_merged_weight, merge_adapter
from loratune.models.ops import prepacked
from loratune.models.ops.prepacked import can_prepack, is_prepacking_faster, prepack_weight, prepacked_linear
from support.small_models import (
    GPT2_SHAPES,
    LLAMA_SHAPES,
    build_reference,
    compute_logits,
    convert_to_decoder,
    randomise_lora,
)

SHAPES = {"gpt2": GPT2_SHAPES["cerebras-gpt"], "smollm2": LLAMA_SHAPES["smollm2"]}


@pytest.fixture(params=SHAPES)
def tuned(request):
    decoder = convert_to_decoder(build_reference(SHAPES[request.param]))
    add_lora(decoder, rank=4, alpha=8, dropout=0.0, targets=["all"])
    randomise_lora(decoder, std=0.1)
    return decoder.eval()


def collect_weights(decoder) -> list[tuple[torch.Tensor, bool]]:
    return [(linear.weight.clone(), linear.adapter_enabled) for _, linear in named_linears(decoder)]


def are_weights_unchanged(before, decoder) -> bool:
    return all(
        one.equal(other) and was == now
        for (one, was), (other, now) in zip(before, collect_weights(decoder), strict=True)
    )


@pytest.fixture(params=["packed", "plain"])
def product(request, monkeypatch):
    """As on a processor where packing pays, and as on any other one."""
    if request.param == "packed" and not can_prepack(torch.float32):
        pytest.skip("this processor has no such product")
    monkeypatch.setattr(merge, "is_prepacking_faster", lambda precision: request.param == "packed")


@pytest.mark.usefixtures("product")
@torch.no_grad()
def test_merged_logits_equal_unmerged_and_weights_are_restored(tuned):
    before, ids = collect_weights(tuned), torch.arange(50)
    apart = compute_logits(tuned, ids)
    with merge_adapter(tuned):
        assert not are_weights_unchanged(before, tuned)
        assert (compute_logits(tuned, ids) - apart).abs().max() < 1e-4
    assert are_weights_unchanged(before, tuned)
    assert compute_logits(tuned, ids).equal(apart)


@pytest.mark.usefixtures("product")
def test_weights_are_restored_after_an_error(tuned):
    before = collect_weights(tuned)
    with pytest.raises(KeyboardInterrupt), merge_adapter(tuned):
        raise KeyboardInterrupt
    assert are_weights_unchanged(before, tuned)


@pytest.mark.usefixtures("product")
def test_merging_with_the_adapter_off_keeps_the_base(tuned):
    before = collect_weights(tuned)
    with without_adapter(tuned):
        base = compute_logits(tuned, torch.arange(20))
        with merge_adapter(tuned):
            assert (compute_logits(tuned, torch.arange(20)) - base).abs().max() < 1e-5
    assert are_weights_unchanged(before, tuned)


@torch.no_grad()
def test_bf16_merge_rounds_the_sum_once(tuned):
    """The product rounded by itself, or added in bf16, would lose up to a step of the coarse weights more."""
    for _, linear in named_linears(set_precision(tuned, torch.bfloat16)):
        product = linear.lora.scale * linear.lora.B.double() @ linear.lora.A.double()
        expected = (linear.weight.double() + product).float().bfloat16()
        assert (
            compute_merged_weight(linear.weight, linear.lora) != expected
        ).float().mean() < 1e-3  # where fp32 and fp64 round a tie to other sides


@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
@torch.no_grad()
def test_both_precisions_are_prepacked_except_on_intel(tuned, monkeypatch, precision, tolerance):
    """One without AVX-512 has no packed products in bf16: oneDNN raises."""
    monkeypatch.setattr(prepacked, "processor_name", lambda: "AMD Ryzen")
    monkeypatch.setattr(merge, "is_prepacking_faster", is_prepacking_faster.__wrapped__)
    decoder, ids = set_precision(tuned, precision), torch.arange(50)
    apart = compute_logits(decoder, ids)
    with merge_adapter(decoder):
        assert (compute_logits(decoder, ids) - apart).norm() < tolerance * apart.norm()


@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("rows", [1, 7, 64, 333])
@pytest.mark.parametrize(("width_in", "width_out"), [(96, 40), (33, 129)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_prepacked_product_equals_plain_product(precision, tolerance, rows, width_in, width_out, with_bias):
    if not can_prepack(precision):
        pytest.skip("this processor has no such product")
    generator = torch.Generator().manual_seed(0)
    shapes = (rows, width_in), (width_out, width_in), (width_out,)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in shapes)
    x, weight, bias = x.to(precision), weight.to(precision), bias.to(precision) if with_bias else None
    expected = torch.nn.functional.linear(
        x.double(), weight.double(), None if bias is None else bias.double()
    )
    product = prepacked_linear(x, prepack_weight(weight), bias)
    assert product.dtype == precision
    assert (product - expected).norm() < tolerance * expected.norm()
