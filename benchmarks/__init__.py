"""Measurements of loratune, alone and against other tools: `python -m benchmarks.NAME --help`.

All of them read what is on this machine, and their threads wait as loratune's do, the other tools' included.
"""

import os

from loratune.system.hardware import set_wait_policy

# Before torch and transformers are imported, which read these once.
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
set_wait_policy()
