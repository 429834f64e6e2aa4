"""The training step equals the plain computation of `transformers` and PEFT."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config

from loratune.data.packing import pack
from loratune.evaluation.likelihood import response_nll
from loratune.models.load import set_precision
from loratune.models.lora import adapter_parameters
from loratune.models.ops import nll
from loratune.training.objective import ResponseNll, target_nll
from loratune.training.step import NonFiniteError, OutOfMemoryError, StepResult, adamw, train_step
from loratune.training.validate import compute_validation_loss
from support.plain_lora import (
    MODELS,
    add_random_lora,
    assert_same,
    build_adapted_decoder,
    build_examples,
    build_random_examples,
    compute_gradients,
    compute_peft_gradients,
)
from support.small_models import (
    GPT2_SHAPES,
    LLAMA_SHAPES,
    build_reference,
    compute_logits,
    convert_to_decoder,
)

OBJECTIVE = ResponseNll()
SHAPES = GPT2_SHAPES | LLAMA_SHAPES


@pytest.mark.parametrize("name", MODELS)
def test_packed_loss_equals_single_examples(name):
    rows = build_examples()
    assert_same(
        compute_gradients(build_adapted_decoder(name), [rows]),
        compute_gradients(build_adapted_decoder(name), [[one] for one in rows]),
        1e-5,
    )


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_equal_transformers_and_peft(name):
    decoder, rows = build_adapted_decoder(name), build_examples()
    assert_same(
        compute_gradients(decoder, [rows]),
        compute_peft_gradients(build_reference(MODELS[name]), decoder, rows),
        1e-4,
    )


def plain_step(decoder, groups, clip: float) -> tuple[StepResult, list[torch.Tensor]]:
    """A training step by plain SGD. Returns its result and what it took from the weights, divided by the
    learning rate.
    """
    rate = 1e3  # far above the weights, whose rounding would else drown small gradients
    before = [parameter.detach().clone() for parameter in adapter_parameters(decoder).values()]
    optimizer = torch.optim.SGD(adapter_parameters(decoder).values(), lr=0.0)
    result = train_step(
        decoder,
        optimizer,
        [pack(group) for group in groups],
        objective=OBJECTIVE,
        learning_rate=rate,
        clip=clip,
    )
    return result, [
        (old - new.detach()) / rate
        for old, new in zip(before, adapter_parameters(decoder).values(), strict=True)
    ]


@pytest.mark.parametrize("name", MODELS)
def test_step_does_not_depend_on_the_micro_batches(name):
    rows = build_examples()
    expected = compute_gradients(build_adapted_decoder(name), [rows])
    for groups in (
        [rows],
        [rows[:2], rows[2:]],
        [[one] for one in rows],
    ):  # of 4 and 44 targets; of 3, 1, 12, 30 and 2
        result, gradients = plain_step(build_adapted_decoder(name), groups, clip=1e9)
        assert_same((result.loss, gradients), expected, 1e-5)
        assert (result.weight, result.tokens) == (
            48,
            sum(len(one.prompt + one.response) - 1 for one in rows),
        )


@pytest.mark.parametrize("share", [0.25, 4.0])
def test_clipping_scales_only_longer_gradients(share):
    rows = build_examples()
    loss, whole = compute_gradients(build_adapted_decoder("llama"), [rows])
    norm = torch.cat([gradient.flatten() for gradient in whole]).norm().item()
    result, gradients = plain_step(build_adapted_decoder("llama"), [rows[:2], rows[2:]], clip=share * norm)
    assert_same((result.loss, gradients), (loss, [gradient * min(share, 1.0) for gradient in whole]), 1e-5)
    assert result.grad_norm == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_equal_torch_adamw(decay):
    """Several, because the first is the same whatever the betas are."""
    rows, decoder, other = build_examples(), build_adapted_decoder("llama"), build_adapted_decoder("llama")
    optimizer = adamw(decoder, decay)
    plain = torch.optim.AdamW(
        adapter_parameters(other).values(),
        lr=1e-2,
        betas=(0.5, 0.999),
        eps=1e-8,
        weight_decay=decay,
        fused=False,
        foreach=False,
    )
    for group in (rows[:2], rows[2:4], rows[4:]):
        train_step(decoder, optimizer, [pack(group)], objective=OBJECTIVE, learning_rate=1e-2, clip=1e9)
        plain.zero_grad()
        compute_gradients(other, [group])
        plain.step()
    for mine, yours in zip(
        adapter_parameters(decoder).values(), adapter_parameters(other).values(), strict=True
    ):
        assert (mine - yours).norm() <= 1e-5 * yours.norm()


def with_seed(decoder, rows) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients of one micro-batch for one seed of the dropout."""
    torch.manual_seed(3)
    return compute_gradients(decoder, [rows])


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_is_close_to_fp32(shape, dropout):
    """Of each shape: the residual stream, the norms and the adapter are fp32 in both, what is multiplied is
    not.
    """
    model, rows = build_reference(SHAPES[shape]), build_examples()
    loss, whole = with_seed(add_random_lora(convert_to_decoder(model), dropout=dropout), rows)
    decoder = set_precision(add_random_lora(convert_to_decoder(model), dropout=dropout), torch.bfloat16)
    half_loss, half = with_seed(decoder, rows)
    assert half_loss == pytest.approx(loss, rel=2e-3)
    for mine, yours in zip(half, whole, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - yours).norm() <= 0.1 * yours.norm()  # so their cosine is above 0.99
    decoder.gradient_checkpointing = True
    for parameter in adapter_parameters(decoder).values():
        parameter.grad = None
    again_loss, again = with_seed(decoder, rows)
    assert again_loss == half_loss and all(mine.equal(yours) for mine, yours in zip(again, half, strict=True))
    train_step(
        decoder, adamw(decoder, 0.0), [pack(rows)], objective=OBJECTIVE, learning_rate=1e-3, clip=1.0
    )  # raises where anything is not finite


def test_adapter_trains_in_fp32_on_a_bf16_base():
    """A step of 1e-4 is less than half the distance of two bf16 numbers above 0.03: it would be rounded
    away.
    """
    decoder = add_random_lora(
        set_precision(convert_to_decoder(build_reference(MODELS["llama"])), torch.bfloat16)
    )
    before = [parameter.detach().clone() for parameter in adapter_parameters(decoder).values()]
    train_step(
        decoder,
        adamw(decoder, 0.0),
        [pack(build_examples())],
        objective=OBJECTIVE,
        learning_rate=1e-4,
        clip=1e9,
    )
    after = [parameter.detach() for parameter in adapter_parameters(decoder).values()]
    steps = torch.cat([(old - new).abs().flatten() for old, new in zip(before, after, strict=True)])
    assert steps.median().item() == pytest.approx(1e-4, rel=0.01)  # as long as AdamW's first step always is


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation made."""

    made = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **kwargs or {})
        for result in results if isinstance(results, tuple | list) else [results]:
            if isinstance(result, torch.Tensor):
                self.made = max(self.made, result.numel())
        return results


def test_full_logits_matrix_is_never_allocated():
    config = GPT2Config(n_embd=16, n_head=2, n_layer=1, vocab_size=3001)
    decoder, batch = (
        add_random_lora(convert_to_decoder(build_reference(config))),
        pack(build_random_examples([(5, 300)] * 3, 3001)),
    )
    with Largest() as training:
        target_nll(decoder, batch).sum().backward()
    with Largest() as measuring, torch.no_grad():
        target_nll(decoder, batch)
    block = len(batch.targets) * 1024
    assert training.made <= block and measuring.made <= block < len(batch.targets) * 3001


@settings(max_examples=40, deadline=None)
@given(
    targets=st.integers(1, 90),
    vocabulary=st.integers(1, 40),
    block=st.integers(1, 41),
    size=st.integers(0, 60),
    seed=st.integers(0, 1000),
)
@example(targets=90, vocabulary=31, block=8, size=60, seed=1)
def test_token_nll_equals_cross_entropy_with_any_weights(targets, vocabulary, block, size, seed):
    """However the vocabulary is cut, and however far apart the logits of its blocks are."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(targets, 8, generator=generator, requires_grad=True)
    head = size * torch.randn(vocabulary, 8, generator=generator)
    tokens = torch.randint(vocabulary, (targets,), generator=generator)
    each = F.cross_entropy(hidden @ head.t(), tokens, reduction="none")
    weights = 3 * torch.randn(targets, generator=generator)
    (expected,) = torch.autograd.grad(each, hidden, weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nll, "VOCAB_BLOCK_SIZE", block)
        fused = nll.token_nll(hidden, head, tokens)
        measured = nll.token_nll(hidden.detach(), head, tokens)
    (gradient,) = torch.autograd.grad(fused, hidden, weights)
    near = {"rtol": 1e-4, "atol": 1e-4 * (1 + size)}  # a difference of logits of this size
    assert torch.allclose(measured, each, **near) and fused.equal(measured)
    assert torch.allclose(gradient, expected, **near)


def test_evaluated_likelihood_equals_the_training_loss():
    decoder, rows = build_adapted_decoder("llama"), build_examples()
    batch = pack(rows)
    with torch.no_grad():
        loss = target_nll(decoder, batch).sum().item()
    assert response_nll(decoder, rows).sum() == pytest.approx(loss, rel=1e-5)


@torch.no_grad()
def test_validation_loss_does_not_depend_on_batching():
    rows, decoder = build_examples(), build_adapted_decoder("llama", dropout=0.5)
    targets = torch.tensor([token for one in rows for token in one.response])
    decoder.eval()
    known = [
        compute_logits(decoder, torch.tensor(one.prompt + one.response))[len(one.prompt) - 1 : -1]
        for one in rows
    ]
    expected = F.cross_entropy(torch.cat(known), targets).item()
    decoder.train()  # in the middle of training, with dropout
    for groups in ([rows], [rows[:2], rows[2:]], [[one] for one in rows]):
        assert compute_validation_loss(
            decoder, [pack(group) for group in groups], OBJECTIVE
        ) == pytest.approx(expected, rel=1e-6)
        assert decoder.training


@pytest.mark.parametrize("name", MODELS)
def test_training_lowers_the_loss(name):
    decoder, batch = build_adapted_decoder(name), pack(build_examples())
    optimizer = adamw(decoder, weight_decay=0.0)
    losses = [
        train_step(decoder, optimizer, [batch], objective=OBJECTIVE, learning_rate=1e-2, clip=1.0).loss
        for _ in range(60)
    ]
    assert losses[-1] < 0.9 * losses[0]  # the frozen random head leaves no more to win


def test_only_the_adapter_is_trained():
    decoder = build_adapted_decoder("gpt2")
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    train_step(
        decoder,
        adamw(decoder, 0.0),
        [pack(build_examples())],
        objective=OBJECTIVE,
        learning_rate=1e-2,
        clip=1.0,
    )
    changed = {name for name, value in decoder.state_dict().items() if not value.equal(before[name])}
    assert changed == {name for name in before if ".lora." in name}


def test_dropout_is_repeatable_and_off_when_evaluating():
    decoder, batch = build_adapted_decoder("llama", dropout=0.5), pack(build_examples())

    def loss():
        torch.manual_seed(7)
        return target_nll(decoder, batch).sum().item()

    decoder.train()
    with_dropout = loss()
    assert loss() == with_dropout
    decoder.eval()
    assert loss() != with_dropout


def test_non_finite_loss_raises_and_changes_nothing():
    decoder = build_adapted_decoder("gpt2")
    decoder.layers[0].mlp.up.lora.A.data[0, 0] = float("inf")
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    with pytest.raises(NonFiniteError):
        train_step(
            decoder,
            adamw(decoder, 0.0),
            [pack(build_examples())],
            objective=OBJECTIVE,
            learning_rate=1e-2,
            clip=1.0,
        )
    assert all(value.equal(before[name]) for name, value in decoder.state_dict().items())


def test_out_of_memory_changes_neither_adapter_nor_optimiser():
    """It is the second micro-batch that does not fit, when the first one's gradients are there."""
    decoder, rows = build_adapted_decoder("llama"), build_examples()
    optimizer = adamw(decoder, 0.0)
    train_step(decoder, optimizer, [pack(rows)], objective=OBJECTIVE, learning_rate=1e-2, clip=1.0)
    before = [value.clone() for value in collect_state(decoder, optimizer)]

    class TooLarge(ResponseNll):
        def losses(self, decoder, batch):
            if len(batch.lengths) == 3:
                raise RuntimeError(
                    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
                )
            return super().losses(decoder, batch)

    with pytest.raises(OutOfMemoryError):
        train_step(
            decoder,
            optimizer,
            [pack(rows[:2]), pack(rows[2:])],
            objective=TooLarge(),
            learning_rate=1e-2,
            clip=1.0,
        )
    assert all(now.equal(then) for now, then in zip(collect_state(decoder, optimizer), before, strict=True))


def collect_state(decoder, optimizer) -> list[torch.Tensor]:
    moments = [value for state in optimizer.state.values() for value in state.values()]
    return [
        *adapter_parameters(decoder).values(),
        *(parameter.grad for parameter in adapter_parameters(decoder).values()),
        *moments,
    ]
