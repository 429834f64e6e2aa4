"""The training step against the plain computation: packed, accumulated, in `transformers` and PEFT, it is one and the same."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from loratune.data.encode import Encoded
from loratune.data.pack import pack
from loratune.models.adapter import adapter_weights
from loratune.models.attention import packed_attention
from loratune.models.likelihood import target_nll
from loratune.models.lora import add_lora, trained_parameters
from loratune.training.loss import HeadCrossEntropy, target_loss
from loratune.training.step import NonFinite, adamw, train_step
from small_models import GPT2_SHAPES, LLAMA_SHAPES, ours, randomise_lora, reference

MODELS = {"gpt2": GPT2_SHAPES["cerebras-gpt"], "llama": LLAMA_SHAPES["biases"]}
PEFT_TARGETS = {
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


def row(prompt: list[int], response: list[int]) -> Encoded:
    return Encoded(prompt=prompt, response=response, id=f"{len(prompt)}-{len(response)}", source="test")


def some_rows() -> list[Encoded]:
    generator = torch.Generator().manual_seed(5)
    lengths = [(7, 3), (1, 1), (20, 12), (4, 30), (11, 2)]
    draw = lambda count: torch.randint(1, 200, (count,), generator=generator).tolist()  # noqa: E731
    return [row(draw(prompt), draw(response)) for prompt, response in lengths]


def adapted(name: str):
    decoder = ours(reference(MODELS[name]))
    add_lora(decoder, rank=4, alpha=8, dropout=0.0, targets=["all"])
    randomise_lora(decoder)
    return decoder.train()


def gradients(decoder, groups: list[list[Encoded]]) -> tuple[float, list[torch.Tensor]]:
    """Loss (mean over all targets) and gradients, the groups accumulated."""
    targets = sum(len(pack(group).targets) for group in groups)
    total = 0.0
    for group in groups:
        batch = pack(group)
        loss = target_loss(decoder, batch, packed_attention(batch.lengths)) / targets
        loss.backward()
        total += loss.item()
    return total, [parameter.grad for parameter in trained_parameters(decoder)]


def assert_same(first, second, tolerance):
    assert first[0] == pytest.approx(second[0], rel=tolerance)
    for mine, yours in zip(first[1], second[1], strict=True):
        assert (mine - yours).norm() <= tolerance * yours.norm()


@pytest.mark.parametrize("name", MODELS)
def test_packed_equals_alone(name):
    rows = some_rows()
    assert_same(gradients(adapted(name), [rows]), gradients(adapted(name), [[one] for one in rows]), 1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_accumulated_equals_whole(name):
    rows = some_rows()
    assert_same(gradients(adapted(name), [rows[:2], rows[2:]]), gradients(adapted(name), [rows]), 1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_equal_transformers_and_peft(name):
    rows = some_rows()
    decoder = adapted(name)
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=PEFT_TARGETS[name], task_type="CAUSAL_LM", fan_in_fan_out=name == "gpt2"
    )
    there = get_peft_model(reference(MODELS[name]), config).eval()  # GPT-2's configuration has dropout of its own
    theirs = dict(there.named_parameters())
    mine = adapter_weights(decoder)
    for key, value in mine.items():
        theirs[key.replace(".weight", ".default.weight")].data.copy_(value)
    total, loss = sum(len(one.response) for one in rows), 0.0
    for one in rows:
        ids = torch.tensor([one.prompt + one.response])
        labels = torch.tensor([[-100] * len(one.prompt) + one.response])
        part = there(input_ids=ids, labels=labels).loss * len(one.response) / total
        part.backward()
        loss += part.item()
    expected = [theirs[key.replace(".weight", ".default.weight")].grad for key in mine]
    assert_same(gradients(decoder, [rows]), (loss, expected), 1e-4)


@settings(max_examples=25, deadline=None)
@given(targets=st.integers(1, 700), seed=st.integers(0, 1000))
def test_head_loss_equals_cross_entropy(targets, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(targets, 8, generator=generator, requires_grad=True)
    head = torch.randn(31, 8, generator=generator)
    wanted = torch.randint(31, (targets,), generator=generator)
    plain = F.cross_entropy(hidden @ head.t(), wanted, reduction="sum")
    (expected,) = torch.autograd.grad(plain, hidden)
    fused = HeadCrossEntropy.apply(hidden, head, wanted)
    (gradient,) = torch.autograd.grad(fused * 3, hidden)
    assert fused.item() == pytest.approx(plain.item(), rel=1e-5)
    assert torch.allclose(gradient, 3 * expected, rtol=1e-4, atol=1e-5)


def test_likelihood_is_the_same_sum_as_the_loss():
    decoder, batch = adapted("llama"), pack(some_rows())
    with torch.no_grad():
        loss = target_loss(decoder, batch, packed_attention(batch.lengths))
    assert target_nll(decoder, batch).sum().item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_training_lowers_the_loss(name):
    decoder, batch = adapted(name), pack(some_rows())
    optimizer = adamw(decoder, weight_decay=0.0)
    losses = [train_step(decoder, optimizer, [batch], 1e-2, 1.0).loss for _ in range(60)]
    assert losses[-1] < 0.9 * losses[0]  # the frozen random head leaves no more to win


def test_only_the_adapter_is_trained():
    decoder = adapted("gpt2")
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    train_step(decoder, adamw(decoder, 0.0), [pack(some_rows())], 1e-2, 1.0)
    changed = {name for name, value in decoder.state_dict().items() if not value.equal(before[name])}
    assert changed == {name for name in before if ".lora." in name}


def test_dropout_is_repeatable_and_off_when_evaluating():
    decoder = ours(reference(MODELS["llama"]))
    add_lora(decoder, rank=4, alpha=8, dropout=0.5, targets=["all"])
    randomise_lora(decoder)
    batch = pack(some_rows())

    def loss():
        torch.manual_seed(7)
        return target_loss(decoder, batch, packed_attention(batch.lengths)).item()

    decoder.train()
    with_dropout = loss()
    assert loss() == with_dropout
    decoder.eval()
    assert loss() != with_dropout


def test_non_finite_stops_and_leaves_the_adapter_alone():
    decoder = adapted("gpt2")
    decoder.layers[0].mlp.up.lora.A.data[0, 0] = float("inf")
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    with pytest.raises(NonFinite):
        train_step(decoder, adamw(decoder, 0.0), [pack(some_rows())], 1e-2, 1.0)
    assert all(value.equal(before[name]) for name, value in decoder.state_dict().items())
