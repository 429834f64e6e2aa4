"""Small random models of every supported architecture, of `transformers` and of ours."""

import copy

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from loratune.models.architectures import build_spec
from loratune.models.decoder import Decoder
from loratune.models.load import build_decoder
from loratune.models.ops.attention import packed_attention

SMALL = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "vocab_size": 211,
    "max_position_embeddings": 512,
}
GROUPED = {"num_attention_heads": 6, "num_key_value_heads": 2}

GPT2_SHAPES = {  # (width, heads) of the published sizes, with fewer layers and a smaller vocabulary
    "gpt2": GPT2Config(n_embd=768, n_head=12, n_layer=2, vocab_size=503),
    "gpt2-medium": GPT2Config(n_embd=1024, n_head=16, n_layer=2, vocab_size=503),
    "gpt2-large": GPT2Config(n_embd=1280, n_head=20, n_layer=1, vocab_size=503),
    "gpt2-xl": GPT2Config(n_embd=1600, n_head=25, n_layer=1, vocab_size=503),
    "cerebras-gpt": GPT2Config(
        n_embd=96, n_head=3, n_layer=2, n_inner=200, vocab_size=211, activation_function="gelu"
    ),
}
LLAMA_SHAPES = {
    "smollm2": LlamaConfig(**SMALL, **GROUPED, tie_word_embeddings=True),
    "tinyllama": LlamaConfig(**SMALL, **GROUPED, tie_word_embeddings=False),
    "every head its own keys": LlamaConfig(**SMALL, num_attention_heads=4, num_key_value_heads=4),
    "biases": LlamaConfig(**SMALL, **GROUPED, attention_bias=True, mlp_bias=True),
    "llama-3.2": LlamaConfig(
        **SMALL,
        **GROUPED,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "mistral": MistralConfig(**SMALL, **GROUPED, sliding_window=None),
    "qwen2.5": Qwen2Config(**SMALL, **GROUPED, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SMALL, **GROUPED, head_dim=16),
}


def build_reference(config: PretrainedConfig, seed: int = 0):
    """A random model as `transformers` computes it; biases and norms are random, too, so that none can be
    forgotten.
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval().float()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
        elif parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.1)
    return model


def convert_to_decoder(model) -> Decoder:
    return build_decoder(build_spec(model.config), model.state_dict())


def compute_logits(decoder: Decoder, ids: torch.Tensor) -> torch.Tensor:
    """Compute the logits, [tokens, vocabulary], of one document without a cache."""
    return decoder.logits(decoder(ids, torch.arange(len(ids)), packed_attention([len(ids)])))


def randomise_lora(decoder: Decoder, seed: int = 1, std: float = 0.1) -> None:
    """Make the adapter random, because B is zero at first, which would hide mistakes."""
    from loratune.models.lora import adapter_parameters

    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter_parameters(decoder).values():
        parameter.data.normal_(std=std, generator=generator)


def save_model(
    folder,
    config: PretrainedConfig = LLAMA_SHAPES["smollm2"],
    seed: int = 0,
    begins: str = "",
    ends: str = "",
) -> None:
    """A whole model folder, as a hub would deliver it: random weights, and a byte-level tokenizer that knows
    every text.

    `begins` and `ends` are special tokens that the tokenizer, unless told not to, puts around each text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    config = copy.deepcopy(config)
    vocabulary = {"<|end|>": 0} | {letter: number for number, letter in enumerate(alphabet, 1)}
    vocabulary |= {begins: len(vocabulary)} if begins else {}
    config.vocab_size, config.eos_token_id = len(vocabulary), 0
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    build_reference(config, seed).save_pretrained(folder)
    if begins or ends:
        around = [(text, vocabulary[text]) for text in (begins, ends) if text]
        single = f"{begins} $A {ends}".strip()
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=around)
    names = {"eos_token": "<|end|>", **({"bos_token": begins} if begins else {})}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
