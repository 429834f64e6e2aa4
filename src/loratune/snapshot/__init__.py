"""The data that the package ships: all of Dolly 15k and most of FinQA (see SOURCES.md beside this file)."""

import json
import lzma
from importlib.resources import files


def read(name: str) -> list[dict]:
    """`dolly`, `finqa_train`, `finqa_dev` or `finqa_test`: the rows in their original form."""
    with lzma.open(files(__name__).joinpath(f"{name}.jsonl.xz").open("rb"), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
