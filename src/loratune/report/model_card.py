"""Render the model card beside an adapter."""

import json
import math
from collections import Counter
from collections.abc import Sequence

from loratune import __version__
from loratune.data.chat_template import ChatTemplate
from loratune.data.example import Record
from loratune.data.template import PromptTemplate
from loratune.models.load import LoadedModel
from loratune.models.lora import adapter_parameters
from loratune.report.markdown import escape_markdown, fence_text
from loratune.training.checkpoint import TrainingState
from loratune.training.plan import AdapterSettings

CARD_TEMPLATE = """\
---
base_model: {base_quoted}
library_name: peft
pipeline_tag: text-generation
{licence}tags: [lora, loratune]
---

# LoRA adapter for {base}

Trained by loratune {version}: rank {rank}, alpha {alpha:g}, {layers} linear layers,
{trained:,} trainable parameters.

| | validation loss (nats per response token) | perplexity |
|---|---|---|
| base model | {base_nll:.4f} | {base_perplexity:.2f} |
| with this adapter | {best_nll:.4f} | {best_perplexity:.2f} |

Measured on {val_rows} held-out rows; the adapter is the best of {validations} validations
(step {best_step} of {steps}, {tokens:,} tokens, {minutes:.0f} minutes, {speed:.0f} tokens/s).

## Training data

{sources}

If Dolly 15k (CC BY-SA 3.0, Databricks) or FinQA (MIT, Chen et al. 2021) is among them, their licences
and citations apply; the base model's licence applies in any case.

## Prompt

The adapter was trained on exactly this form (template {template_name}); another one makes it worse:

{prompt}
{bos}
## Use

```
loratune compare --adapter FOLDER
```

or, in any program that uses PEFT:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({base_quoted})
model = PeftModel.from_pretrained(base, "FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
{chat}```
"""
CHAT_LINES = """\
inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": "..."}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
"""


def render_model_card(
    adapter: AdapterSettings,
    base: LoadedModel,
    template: PromptTemplate,
    *,
    state: TrainingState,
    records: Sequence[Record],
    val_rows: int,
    adapted_layers: int,
) -> str:
    """Return the README.md of an adapter folder.

    Args:
        adapter: its form.
        base: the base model with the adapter on it.
        template: the prompt template that it was trained with.
        state: where the training ended.
        records: what it was trained on.
        val_rows: rows that it was validated on.
        adapted_layers: how many linear layers have an adapter.
    """
    assert state.base_nll is not None and state.best_nll is not None, "a run that ended was validated"
    sources = Counter(record.source for record in records)
    bos = escape_markdown(base.tokenizer.bos_text)
    return CARD_TEMPLATE.format(
        base=escape_markdown(base.resolved.hub_name),
        base_quoted=quote(base.resolved.hub_name),
        licence="license: cc-by-sa-3.0\n" if "dolly" in sources else "",
        version=__version__,
        rank=adapter.rank,
        alpha=adapter.alpha,
        layers=adapted_layers,
        trained=sum(parameter.numel() for parameter in adapter_parameters(base.decoder).values()),
        base_nll=state.base_nll,
        base_perplexity=math.exp(state.base_nll),
        best_nll=state.best_nll,
        best_perplexity=math.exp(state.best_nll),
        val_rows=val_rows,
        validations=state.validations,
        best_step=state.best_step,
        steps=state.step,
        tokens=state.tokens,
        minutes=state.elapsed / 60,
        speed=state.tokens / state.stepping,
        sources="\n".join(
            f"* {escape_markdown(source)}: {number:,} rows" for source, number in sources.items()
        ),
        template_name=escape_markdown(template.name),
        prompt=fence_text("".join(template.split_prompt("{instruction}", "{input}"))),
        chat=CHAT_LINES if isinstance(template, ChatTemplate) else "",
        bos=f"\nIn front of it stands the BOS token {bos}.\n" if base.tokenizer.bos else "",
    )


def quote(text: str) -> str:
    """Return the text in quotation marks, as both YAML and Python read it."""
    written = json.dumps(text, ensure_ascii=False)
    return "".join(letter if letter.isprintable() else f"\\U{ord(letter):08x}" for letter in written)
