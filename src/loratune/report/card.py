"""The model card beside an adapter."""

CARD = """\
---
base_model: {base}
library_name: peft
pipeline_tag: text-generation
{licence}tags: [lora, loratune]
---

# LoRA adapter for {base}

Trained by loratune {version}: rank {rank}, alpha {alpha:g}, on {layers} linear layers, {trained:,} trained numbers.

| | validation loss (nats per response token) | perplexity |
|---|---|---|
| base model | {base_nll:.4f} | {base_perplexity:.2f} |
| with this adapter | {best_nll:.4f} | {best_perplexity:.2f} |

Measured on {val_rows} held-out rows; the adapter is the best of {validations} validations (step {best_step} of {steps},
{tokens:,} tokens, {minutes:.0f} minutes, {speed:.0f} tokens/s).

## Training data

{sources}

If Dolly 15k (CC BY-SA 3.0, Databricks) or FinQA (MIT, Chen et al. 2021) is among them, their licences and citations apply;
the base model's licence applies in any case.

## Prompt

The adapter was trained on exactly this form (template `{template_name}`); another one makes it worse:

```
{prompt}
```

## Use

```
loratune compare --adapter FOLDER
```

or, in any program that uses PEFT:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```
"""
