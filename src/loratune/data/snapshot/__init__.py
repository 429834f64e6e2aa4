"""The data that the package ships: all of Dolly 15k and most of FinQA (see SOURCES.md beside this file), and
prompts.
"""

import json
import lzma
from importlib.resources import files
from pathlib import Path

PROMPTS = Path(__file__).with_name("test.json")  # for `compare`; a copy of the repository's


def read(name: str) -> list[dict]:
    """`dolly`, `finqa_train`, `finqa_dev` or `finqa_test`: the rows in their original form."""
    with lzma.open(files(__name__).joinpath(f"{name}.jsonl.xz").open("rb"), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
