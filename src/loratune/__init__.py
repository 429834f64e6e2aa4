"""loratune: fine-tune small language models with LoRA on the machine you have, and measure whether it helped.

    import loratune

    data = loratune.prepare(["dolly", "faq.csv"], out="data")
    result = loratune.train("smollm2-135m", data, budget="5m", rank=16)
    model = loratune.load(result.adapter)
    model.generate("What is a bond?", max_new_tokens=96)
    evaluation = loratune.evaluate(model, "data/test.jsonl", generate=32)

Everything is imported when it is first used, so that `import loratune` takes no torch. Beside these verbs
there are the parts that they consist of, for training loops of one's own: see docs/python-api.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from loratune.api.compare import write_report
    from loratune.api.prepare import PreparedData
    from loratune.api.public import compare, evaluate, load, prepare, train
    from loratune.api.train import TrainResult
    from loratune.data.jsonl import read_records
    from loratune.data.packing import input_length, iterate_steps, pack
    from loratune.data.template import load_template
    from loratune.data.tokenize import tokenize_records
    from loratune.errors import UserError
    from loratune.evaluation.result import Evaluation
    from loratune.model import TunedModel
    from loratune.models.adapter import load_adapter, save_adapter
    from loratune.models.load import load_base
    from loratune.models.lora import add_lora, without_adapter
    from loratune.report.summary import Comparison
    from loratune.training.objective import ResponseNll
    from loratune.training.step import adamw, train_step

# name -> the module that defines it
_MODULES = {
    "Comparison": "loratune.report.summary",
    "Evaluation": "loratune.evaluation.result",
    "PreparedData": "loratune.api.prepare",
    "TrainResult": "loratune.api.train",
    "TunedModel": "loratune.model",
    "compare": "loratune.api.public",
    "evaluate": "loratune.api.public",
    "load": "loratune.api.public",
    "prepare": "loratune.api.public",
    "train": "loratune.api.public",
    "write_report": "loratune.api.compare",
    "UserError": "loratune.errors",
    # the parts
    "ResponseNll": "loratune.training.objective",
    "adamw": "loratune.training.step",
    "add_lora": "loratune.models.lora",
    "input_length": "loratune.data.packing",
    "iterate_steps": "loratune.data.packing",
    "load_adapter": "loratune.models.adapter",
    "load_base": "loratune.models.load",
    "load_template": "loratune.data.template",
    "pack": "loratune.data.packing",
    "read_records": "loratune.data.jsonl",
    "save_adapter": "loratune.models.adapter",
    "tokenize_records": "loratune.data.tokenize",
    "train_step": "loratune.training.step",
    "without_adapter": "loratune.models.lora",
}

__all__ = [
    "Comparison",
    "Evaluation",
    "PreparedData",
    "ResponseNll",
    "TrainResult",
    "TunedModel",
    "UserError",
    "__version__",
    "adamw",
    "add_lora",
    "compare",
    "evaluate",
    "input_length",
    "iterate_steps",
    "load",
    "load_adapter",
    "load_base",
    "load_template",
    "pack",
    "prepare",
    "read_records",
    "save_adapter",
    "tokenize_records",
    "train",
    "train_step",
    "without_adapter",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'loratune' has no attribute {name!r}")
    from loratune.system.hardware import set_wait_policy

    set_wait_policy()  # before torch starts its threads
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
