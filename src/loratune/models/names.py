"""The names of the weights in the models' own files (Hugging Face layout), which are also PEFT's names of the
layers.
"""

# our name inside a layer -> the name inside a layer there
LAYER_MODULE_NAMES = {
    "gpt2": {
        "attention.qkv": "attn.c_attn",
        "attention.output": "attn.c_proj",
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
        "attention_norm": "ln_1",
        "mlp_norm": "ln_2",
    },
    "llama": {
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.output": "self_attn.o_proj",
        "attention.query_norm": "self_attn.q_norm",
        "attention.key_norm": "self_attn.k_norm",
        "mlp.gate": "mlp.gate_proj",
        "mlp.up": "mlp.up_proj",
        "mlp.down": "mlp.down_proj",
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
    },
}
LAYERS_PREFIX = {"gpt2": "transformer.h", "llama": "model.layers"}
OUTER_MODULE_NAMES = {
    "gpt2": {
        "embedding": "transformer.wte",
        "positions": "transformer.wpe",
        "norm": "transformer.ln_f",
        "head": "lm_head",
    },
    "llama": {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"},
}
# GPT-2's linear layers are Conv1D: their weight is [in, out] where everybody else's is [out, in].
TRANSPOSED_WEIGHTS = {"gpt2": True, "llama": False}


def to_hf_name(architecture: str, module: str) -> str:
    """`layers.3.mlp.up` to `transformer.h.3.mlp.c_fc`."""
    if not module.startswith("layers."):
        return OUTER_MODULE_NAMES[architecture][module]
    _, number, inner = module.split(".", 2)
    return f"{LAYERS_PREFIX[architecture]}.{number}.{LAYER_MODULE_NAMES[architecture][inner]}"
