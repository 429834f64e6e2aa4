"""The Python API: prepare, train, load, evaluate and compare, each a command without its output.

Nothing here prints: messages are log records of the logger "loratune". What is wrong with the input raises
`UserError`.
"""

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Unpack

from loratune.api.compare import run_comparison
from loratune.api.evaluate import load_inputs
from loratune.api.prepare import PreparedData, check_preparation, run_preparation
from loratune.api.prompts import read_prompts
from loratune.api.train import TrainResult, run_training, set_up_run
from loratune.config.compare import CompareConfig
from loratune.config.evaluate import EvaluateConfig
from loratune.config.options import AnyPath, CompareOptions, EvaluateOptions, PrepareOptions, TrainOptions
from loratune.config.prepare import PrepareConfig
from loratune.config.shared import DEFAULT_ADAPTER
from loratune.config.train import TrainConfig
from loratune.evaluation.evaluate import evaluate_adapters
from loratune.evaluation.result import Evaluation
from loratune.generation.prompt_format import Prompt
from loratune.model import TunedModel, load_tuned_model
from loratune.report.summary import Comparison
from loratune.training.events import Event


def prepare(
    data: AnyPath | Sequence[AnyPath] = ("dolly", "finqa"),
    out: AnyPath = "data",
    **options: Unpack[PrepareOptions],
) -> PreparedData:
    """Turn Dolly 15k, FinQA or your own files into training, validation and test data.

    Args:
        data: names of data sets (dolly, finqa, owner/name on the hub), files or folders; one or several.
        out: the folder to write to.
        options: as `loratune prepare` has them.

    Raises:
        UserError: rows or options cannot be used; nothing is written then.
    """
    values = {"data": list_texts(data), "out": out, **options}
    for name in ("val", "test"):
        if name in values:
            values[name] = list_texts(values[name])
    return run_preparation(check_preparation(PrepareConfig.validate_all(values)))


def train(
    model: AnyPath = "auto",
    data: AnyPath | PreparedData = "data",
    *,
    on_event: Callable[[Event], object] | None = None,
    **options: Unpack[TrainOptions],
) -> TrainResult:
    """Train a LoRA adapter on prepared data.

    Ctrl-C in the main thread stops the run after a step; `resume=True, run=result.run` goes on with it.

    Args:
        model: the base model: a short name, a name on the hub, a folder or a .gguf file.
        data: a folder with train.jsonl and val.jsonl.
        on_event: called with each event of the run (`loratune.training.events`): steps, validations, ...
        options: as `loratune train` has them; `budget` takes "5m" or seconds.

    Raises:
        UserError: the data, the model or an option cannot be used, or the loss is not finite.
    """
    folder = data.folder if isinstance(data, PreparedData) else data
    values = {"model": str(model), "data": folder, **options}
    setup = set_up_run(TrainConfig.validate_all(values))
    return run_training(setup, on_event or ignore_event)


def load(
    adapter: AnyPath | Sequence[AnyPath] = DEFAULT_ADAPTER,
    *,
    model: str | None = None,
    template: str | None = None,
    threads: int = 0,
    device: str = "auto",
) -> TunedModel:
    """Load an adapter, trained here or by another tool, with its base model.

    Args:
        adapter: its folder; several folders share one base, and `TunedModel.using` chooses.
        model: the base model; None: the one that the adapter was trained on.
        template: a template's name or file; None: the one that the adapter was trained with.
        threads: of the CPU; 0: one for each physical core.
        device: auto, cpu or cuda.

    Raises:
        UserError: the adapter or its base is missing or broken, or they do not belong together.
    """
    adapters = [Path(folder) for folder in list_texts(adapter)]
    return load_tuned_model(adapters, model=model, template=template, threads=threads, device=device)


def evaluate(
    model: TunedModel, data: AnyPath = "data/test.jsonl", **options: Unpack[EvaluateOptions]
) -> Evaluation:
    """Evaluate the model's adapters and its base on the same held-out rows.

    Args:
        model: from `load`.
        data: a .jsonl file, or dolly or finqa: that part of data/test.jsonl.
        options: as `loratune evaluate` has them.

    Returns:
        The measures with intervals, and every row; `to_json()` is what evaluation.json holds.

    Raises:
        UserError: the rows or an option cannot be used.
    """
    values = {"data": str(data), **options}
    return evaluate_adapters(load_inputs(EvaluateConfig.validate_all(values), model))


def compare(
    model: TunedModel,
    prompts: AnyPath | Sequence[Prompt],
    *,
    evaluation: Evaluation | None = None,
    **options: Unpack[CompareOptions],
) -> Comparison:
    """Let the base and the tuned model answer the same prompts.

    Args:
        model: from `load`.
        prompts: a list of instructions or conversations, or a JSON file with one.
        evaluation: the adapter's, for the report.
        options: as `loratune compare` has them.

    Returns:
        The answers and what is known of the adapter; `write_report` makes a page of it.

    Raises:
        UserError: a prompt or an option cannot be used.
    """
    values = {"adapter": model.adapter.folder, **options}
    if isinstance(prompts, str | PathLike):
        values["prompts"], texts = prompts, read_prompts(Path(prompts))
    else:
        texts = list(prompts)
    config = CompareConfig.validate_all(values)
    return run_comparison(config, model, texts, evaluation=evaluation)


def list_texts(value: object) -> list[str]:
    """Return one path or several as a list of texts."""
    several = value if isinstance(value, list | tuple) else [value]
    return [str(one) for one in several]


def ignore_event(event: Event) -> None:
    """Do nothing."""
