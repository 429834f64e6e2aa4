"""`loratune train` on a model of a few thousand parameters: its data, and a short run."""

import json

from safetensors.torch import load_file

from loratune.cli.main import main

ROWS = [
    {"instruction": f"Count to {n}.", "input": "", "output": " ".join(map(str, range(n))), "source": "count"}
    for n in range(2, 40)
]


def write_run_inputs(place) -> None:
    """Write data and a model to a folder."""
    from support.small_models import save_model  # not in each process that is started and killed

    save_model(place / "base")
    (place / "data").mkdir()
    for name, rows in (("train", ROWS[4:]), ("val", ROWS[:4])):
        (place / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


SIZES = ["--batch-tokens", "400", "--micro-tokens", "400", "--max-tokens", "300"]
BASE = ["--model", "base", *SIZES, "--precision", "fp32", "--threads", "1"]
TRAIN = ["train", *BASE]


def train(*options: str) -> int:
    return main([*TRAIN, *options])


def load_adapter_tensors(folder) -> dict:
    return load_file(folder / "adapter_model.safetensors")


def are_same_tensors(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def assert_refused(capsys, *options: str) -> str:
    assert train(*options) == 2
    return capsys.readouterr().err
