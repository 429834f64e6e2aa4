"""loratune: fine-tune small language models with LoRA on the machine you have, and measure whether it
helped.
"""

__version__ = "0.2.0"
