"""Shipped data through models of full size."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from loratune.data.packing import pack
from loratune.data.sources.dolly import load_dolly
from loratune.data.template import load_template
from loratune.data.tokenize import tokenize_records
from support.plain_lora import (
    add_random_lora,
    assert_same,
    build_random_examples,
    compute_gradients,
    compute_peft_gradients,
)
from support.small_models import build_reference, convert_to_decoder

MAX_TOKENS = 1024


@pytest.fixture(scope="module")
def dolly():
    return load_dolly(from_hub=False).records


def test_smollm2_trains_on_dolly_as_transformers_and_peft(smollm2, dolly):
    rows, _ = tokenize_records(
        dolly[:200], load_template("instruction"), smollm2.tokenizer, max_tokens=MAX_TOKENS
    )
    rows = [row for row in rows if len(row.prompt + row.response) < 64][:3]
    model = AutoModelForCausalLM.from_pretrained(smollm2.resolved.folder, dtype=torch.float32)
    decoder = add_random_lora(
        convert_to_decoder(model), std=0.02
    )  # not the shared one, on which the adapter would stay
    assert_same(compute_gradients(decoder, [rows]), compute_peft_gradients(model, decoder, rows), 1e-4)


def test_gpt2_124m_trains_as_transformers_and_peft():
    rows = build_random_examples([(30, 12), (5, 33)], 50257)
    model = build_reference(GPT2Config())
    decoder = add_random_lora(convert_to_decoder(model), std=0.02)
    assert_same(compute_gradients(decoder, [rows]), compute_peft_gradients(model, decoder, rows), 1e-4)


def test_eos_is_the_last_target_of_every_whole_response(smollm2, dolly):
    rows, counts = tokenize_records(
        dolly, load_template("instruction"), smollm2.tokenizer, max_tokens=MAX_TOKENS
    )
    tokenizer = smollm2.tokenizer.hugging_face
    whole = {record.id: record.output + tokenizer.eos_token for record in dolly}
    texts = tokenizer.batch_decode([row.response for row in rows], clean_up_tokenization_spaces=False)
    cut = [row for row, text in zip(rows, texts, strict=True) if text != whole[row.id]]
    assert 0 < len(cut) == counts["dolly"]["responses_cut"]
    sample = cut + rows[::50]
    batch = pack(sample)
    for number, row in enumerate(sample):
        targets = batch.targets[batch.example_index == number].tolist()
        ends = [token == smollm2.tokenizer.eos_id for token in targets]
        assert ends == [False] * (len(row.response) - 1) + [row not in cut]
