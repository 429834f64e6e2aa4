"""Shipped data: all of Dolly 15k, most of FinQA (see SOURCES.md beside this file), and prompts."""

import json
import lzma
from importlib.resources import files
from pathlib import Path

PROMPTS = Path(__file__).with_name("test.json")  # for `compare`; a copy of the repository's


def read(name: str) -> list[dict]:
    """Read the rows of a shipped data set in their original form.

    Args:
        name: `dolly`, `finqa_train`, `finqa_dev` or `finqa_test`.
    """
    with lzma.open(files(__name__).joinpath(f"{name}.jsonl.xz").open("rb"), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
