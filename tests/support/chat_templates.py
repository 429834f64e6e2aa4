"""Chat templates of our own writing, each in the form of a family of models, with its special tokens."""

from hypothesis import strategies as st

CHATML = (
    "{% for message in messages %}{% if loop.first and message.role != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As transformers' own examples mark what is learned.
GENERATION = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Tools are described in the system message; calls and results stand between tags, results in a user's turn.
QWEN_2_5 = (
    "{% set first = messages[0].content if messages[0].role == 'system' else 'You are helpful.' %}"
    "{{ '<|im_start|>system\n' + first }}{% if tools %}{{ '\n\n# Tools\n<tools>' }}"
    "{% for tool in tools %}{{ '\n' + (tool | tojson) }}{% endfor %}{{ '\n</tools>' }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% for message in messages %}"
    "{% if message.role == 'tool' %}{{ '<|im_start|>user\n<tool_response>\n' + message.content }}"
    "{{ '\n</tool_response><|im_end|>\n' }}"
    "{% elif message.role == 'assistant' and message.tool_calls %}{{ '<|im_start|>assistant' }}"
    "{% if message.content %}{{ '\n' + message.content }}{% endif %}"
    "{% for call in message.tool_calls %}{% if call.function %}{% set call = call.function %}{% endif %}"
    '{{ \'\n<tool_call>\n{"name": "\' + call.name + \'", "arguments": \' }}'
    "{{ (call.arguments | tojson) + '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% elif message.role != 'system' %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The system message holds the current date.
LLAMA_3_2 = (
    "{{ bos_token }}{% set rest = messages %}{% set first = '' %}{% if messages[0].role == 'system' %}"
    "{% set first = messages[0].content | trim %}{% set rest = messages[1:] %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + strftime_now('%d %b %Y') + '\n\n' }}"
    "{{ first + '<|eot_id|>' }}{% for message in rest %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}"
    "{{ message.content | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}"
    "{{ message.content | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# The system message stands in the first user's turn, and the assistant is called model.
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for message in rest %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}"
    "{{ (first if loop.first else '') + message.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}"
    "{{ '[INST] ' + message.content + ' [/INST]' }}{% elif message.role == 'assistant' %}"
    "{{ ' ' + message.content + eos_token }}{% else %}"
    "{{ '[SYSTEM_PROMPT]' + message.content + '[/SYSTEM_PROMPT]' }}{% endif %}{% endfor %}"
)
ZEPHYR = (  # TinyLlama's form
    "{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
PHI = (
    "{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# The reasoning of all answers but the last is left out, and the last has an empty one if it has none.
QWEN_3 = (
    "{% for message in messages %}{% set content = message.content %}"
    "{% if message.role == 'assistant' %}{% set thought = '' %}{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>assistant\n' }}"
    "{% if loop.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}"
    "{{ content + '<|im_end|>\n' }}{% else %}"
    "{{ '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# name -> template, special tokens by the name that the template knows, other special tokens
FAMILIES = {
    "chatml": (CHATML, {"eos_token": "<|im_end|>"}, ["<|im_start|>", "<|endoftext|>"]),
    "generation": (GENERATION, {"eos_token": "<|im_end|>"}, ["<|im_start|>"]),
    "llama 3": (
        LLAMA_3,
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        ["<|start_header_id|>", "<|end_header_id|>"],
    ),
    "llama 3.2": (
        LLAMA_3_2,
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        ["<|start_header_id|>", "<|end_header_id|>"],
    ),
    "qwen 2.5": (QWEN_2_5, {"eos_token": "<|im_end|>"}, ["<|im_start|>", "<|endoftext|>"]),
    "gemma": (GEMMA, {"bos_token": "<bos>", "eos_token": "<eos>"}, ["<start_of_turn>", "<end_of_turn>"]),
    "mistral": (
        MISTRAL,
        {"bos_token": "<s>", "eos_token": "</s>"},
        ["[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"],
    ),
    "zephyr": (ZEPHYR, {"bos_token": "<s>", "eos_token": "</s>"}, []),
    "phi": (PHI, {"eos_token": "<|endoftext|>"}, ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]),
    "qwen 3": (QWEN_3, {"eos_token": "<|im_end|>"}, ["<|im_start|>", "<|endoftext|>"]),
}


@st.composite
def conversations(draw, contents):
    """A system message or none, then a user and an assistant in turn; the assistant has the last word."""
    turns = draw(st.integers(1, 4))
    system = [{"role": "system", "content": draw(contents)}] if draw(st.booleans()) else []
    return system + [
        {"role": role, "content": draw(contents)} for _ in range(turns) for role in ("user", "assistant")
    ]


def conversation_with_a_tool() -> list[dict]:
    """A system message, two questions, the call of a tool, its result, and two answers."""
    call = {"type": "function", "function": {"name": "find_shelf", "arguments": {"thing": "kettle"}}}
    return [
        {"role": "system", "content": "You keep a store of old things."},
        {"role": "user", "content": "Where is the kettle?"},
        {"role": "assistant", "content": "Let me look.", "tool_calls": [call]},
        {"role": "tool", "content": "shelf 4"},
        {"role": "assistant", "content": "It is on shelf 4."},
        {"role": "user", "content": "And what does it cost?"},
        {"role": "assistant", "content": "Twelve francs."},
    ]
