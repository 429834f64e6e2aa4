"""Training examples, and the plain computations that the training step is compared with."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model

from loratune.data.example import Example
from loratune.data.packing import pack
from loratune.models.adapter import get_adapter_weights
from loratune.models.lora import adapter_parameters, add_lora
from loratune.training.objective import target_nll
from support.small_models import (
    GPT2_SHAPES,
    LLAMA_SHAPES,
    build_reference,
    convert_to_decoder,
    randomise_lora,
)

MODELS = {"gpt2": GPT2_SHAPES["cerebras-gpt"], "llama": LLAMA_SHAPES["biases"]}
PEFT_TARGETS = {
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
RANK, ALPHA = 4, 8


def build_example(prompt: list[int], response: list[int]) -> Example:
    return Example(prompt=prompt, response=response, id=f"{len(prompt)}-{len(response)}", source="test")


def build_random_examples(lengths: list[tuple[int, int]], vocabulary: int) -> list[Example]:
    """Build random examples with these numbers of prompt and response tokens."""
    generator = torch.Generator().manual_seed(5)
    draw = lambda count: torch.randint(1, vocabulary, (count,), generator=generator).tolist()  # noqa: E731
    return [build_example(draw(prompt), draw(response)) for prompt, response in lengths]


def build_examples() -> list[Example]:
    return build_random_examples([(7, 3), (1, 1), (20, 12), (4, 30), (11, 2)], 200)


def add_random_lora(decoder, std: float = 0.1, dropout: float = 0.0):
    add_lora(decoder, rank=RANK, alpha=ALPHA, dropout=dropout, targets=["all"])
    randomise_lora(decoder, std=std)
    return decoder.train()


def build_adapted_decoder(name: str, dropout: float = 0.0):
    return add_random_lora(convert_to_decoder(build_reference(MODELS[name])), dropout=dropout)


def compute_gradients(decoder, groups: list[list[Example]]) -> tuple[float, list[torch.Tensor]]:
    """Compute the loss, a mean over all targets, and the gradients, accumulated over the groups."""
    targets = sum(len(pack(group).targets) for group in groups)
    total = 0.0
    for group in groups:
        batch = pack(group)
        loss = target_nll(decoder, batch).sum() / targets
        loss.backward()
        total += loss.item()
    return total, [parameter.grad for parameter in adapter_parameters(decoder).values()]


def compute_peft_gradients(model, decoder, rows: list[Example]) -> tuple[float, list[torch.Tensor]]:
    """Compute the same with `transformers` and PEFT, with the decoder's adapter, row by row."""
    kind = decoder.spec.architecture
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=PEFT_TARGETS[kind],
        task_type="CAUSAL_LM",
        fan_in_fan_out=kind == "gpt2",
    )
    there = get_peft_model(model, config).eval()  # GPT-2's configuration has dropout of its own
    theirs = dict(there.named_parameters())
    mine = {
        name.replace(".weight", ".default.weight"): matrix
        for name, matrix in get_adapter_weights(decoder).items()
    }
    for name, matrix in mine.items():
        theirs[name].data.copy_(matrix)
    targets, total = sum(len(one.response) for one in rows), 0.0
    for one in rows:
        logits = there(torch.tensor([one.prompt + one.response])).logits[0, len(one.prompt) - 1 : -1]
        # In fp32, cross_entropy over a large vocabulary is wrong by more than all else together.
        loss = F.cross_entropy(logits.double(), torch.tensor(one.response), reduction="sum") / targets
        loss.backward()
        total += loss.item()
    return total, [theirs[name].grad for name in mine]


def assert_same(first, second, tolerance):
    """Assert that losses and gradients are equal, each matrix relative to its norm."""
    assert first[0] == pytest.approx(second[0], rel=tolerance)
    for mine, yours in zip(first[1], second[1], strict=True):
        assert (mine - yours).norm() <= tolerance * yours.norm()
