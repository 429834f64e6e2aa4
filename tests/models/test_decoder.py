"""The decoder gives the logits of `transformers` for every supported architecture."""

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, MistralConfig, PhiConfig, Qwen2Config

from loratune.errors import UserError
from loratune.models.architectures import build_spec
from loratune.models.ops.attention import packed_attention
from support.small_models import (
    GPT2_SHAPES,
    GROUPED,
    LLAMA_SHAPES,
    SMALL,
    build_reference,
    compute_logits,
    convert_to_decoder,
)

SHAPES = GPT2_SHAPES | LLAMA_SHAPES


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_logits_equal_transformers(name):
    model = build_reference(SHAPES[name])
    ids = torch.randint(model.config.vocab_size, (150,), generator=torch.Generator().manual_seed(2))
    assert (compute_logits(convert_to_decoder(model), ids) - model(ids[None]).logits[0]).abs().max() < 1e-4


@torch.no_grad()
def test_gpt2_124m_equals_transformers_up_to_its_last_position():
    model = build_reference(GPT2Config())
    ids = torch.randint(50257, (1024,), generator=torch.Generator().manual_seed(2))
    assert (compute_logits(convert_to_decoder(model), ids) - model(ids[None]).logits[0]).abs().max() < 1e-4


@torch.no_grad()
def test_real_smollm2(smollm2):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2.resolved.folder, dtype=torch.float32)
    ids = torch.tensor(
        smollm2.tokenizer.encode("### Instruction:\nName the capital of France.\n\n### Response:\nParis.")
    )
    assert (compute_logits(smollm2.decoder, ids) - model(ids[None]).logits[0]).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["gpt2", "smollm2"])
@torch.no_grad()
def test_packed_documents_do_not_see_each_other(name):
    model = build_reference(SHAPES[name])
    decoder, lengths = convert_to_decoder(model), [1, 40, 7, 64]
    documents = [
        torch.randint(200, (length,), generator=torch.Generator().manual_seed(length)) for length in lengths
    ]
    positions = torch.cat([torch.arange(length) for length in lengths])
    packed = decoder.logits(decoder(torch.cat(documents), positions, packed_attention(lengths)))
    alone = torch.cat([compute_logits(decoder, document) for document in documents])
    assert (packed - alone).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["gpt2", "smollm2"])
@torch.no_grad()
def test_output_index_limits_the_last_layer_to_these_tokens(name):
    decoder, ids, output_index = (
        convert_to_decoder(build_reference(SHAPES[name])),
        torch.arange(60),
        torch.tensor([3, 4, 41, 59]),
    )
    all_of_them = decoder(ids, ids, packed_attention([40, 20]))
    assert (
        decoder(ids, ids, packed_attention([40, 20]), output_index) - all_of_them[output_index]
    ).abs().max() < 1e-5


def test_decoder_shares_the_weights_memory():
    model = build_reference(GPT2_SHAPES["cerebras-gpt"])
    decoder = convert_to_decoder(model)
    assert decoder.layers[0].mlp.up.weight.data_ptr() == model.transformer.h[0].mlp.c_fc.weight.data_ptr()


def test_unsupported_architecture_is_refused_by_name():
    with pytest.raises(UserError, match="'phi' is not supported"):
        build_spec(PhiConfig())
    with pytest.raises(UserError, match="activation"):
        build_spec(GPT2Config(activation_function="tanh"))
    with pytest.raises(UserError, match="gated activation 'gelu'"):
        build_spec(LlamaConfig(hidden_act="gelu"))
    with pytest.raises(UserError, match="scale_attn_by_inverse_layer_idx"):
        build_spec(GPT2Config(scale_attn_by_inverse_layer_idx=True))


@torch.no_grad()
def test_sliding_window_limits_the_positions():
    """Mistral's layers see only so many tokens back: inside the window that is plain causal attention."""
    config = MistralConfig(**SMALL, **GROUPED, sliding_window=32)
    assert build_spec(config).max_positions == 32
    model, ids = build_reference(config), torch.arange(60)
    apart = (compute_logits(convert_to_decoder(model), ids) - model(ids[None]).logits[0]).abs().amax(1)
    assert apart[:32].max() < 1e-4 < 0.01 < apart[32:].max()
    assert (
        build_spec(Qwen2Config(**SMALL, **GROUPED, sliding_window=32, use_sliding_window=False)).max_positions
        == 512
    )
