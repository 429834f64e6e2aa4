"""Load all that a training run reads: the base model, and the prepared data as token ids."""

from dataclasses import dataclass
from pathlib import Path

from loratune.config.train import TrainConfig
from loratune.data.example import Example, Record
from loratune.data.jsonl import read_records
from loratune.data.resolve_template import check_template_choice, fit_tokenizer, resolve_template
from loratune.data.template import PromptTemplate
from loratune.data.token_cache import load_or_tokenize, make_token_cache_key
from loratune.data.tokenize import tokenize_records, tokenize_with_progress
from loratune.errors import UserError
from loratune.models.load import LoadedModel, load_model, mention_chat_template
from loratune.models.resolve import resolve_model
from loratune.models.tokenizer import Tokenizer
from loratune.system.atomic import refuse_unwritable
from loratune.system.cache import get_cache_folder
from loratune.system.device import choose_device
from loratune.system.memory import release_memory_when_freed
from loratune.system.read import hash_file, read_json
from loratune.training.setup.recorded_run import (
    choose_device_remedy,
    read_template_date,
    refuse_changes,
    resolve_bos,
)


@dataclass(frozen=True)
class TrainInputs:
    """All that a run reads: the base model, and the data as tokens."""

    device: str
    template: PromptTemplate
    model: LoadedModel  # in fp32 on the CPU, without an adapter
    data_hashes: dict[str, str]  # sha256 of train.jsonl and val.jsonl
    preparation: dict  # the settings of FinQA's prompts, if they are known
    records: list[Record]
    examples: list[Example]
    truncation_counts: dict[str, dict[str, int]]  # source: its counts by `data.tokenize.COUNT_NAMES`
    val_examples: list[Example]  # all of them


def load_inputs(config: TrainConfig) -> TrainInputs:
    """Read the data and the base model; check that they fit together and, when resuming, fit the run."""
    refuse_unwritable(config.out, folder=True)
    device = choose_device(config.threads, config.device, choose_device_remedy(config))
    if config.low_memory:
        release_memory_when_freed()
    check_template_choice(config.template)
    hashes, records, val_records = read_data(config.data)
    resolved = resolve_model(config.model)
    tokenizer = Tokenizer.load(resolved.folder)
    template = resolve_template(config.template, tokenizer, today=read_template_date(config))
    tokenizer = fit_tokenizer(resolve_bos(config, tokenizer), template)
    if config.resume:  # before the long work
        refuse_changes(config, resolved, template, tokenizer=tokenizer, hashes=hashes, device=device)
    model = load_model(resolved, tokenizer=tokenizer)
    mention_chat_template(model, template.name)
    max_positions = model.decoder.spec.max_positions
    if config.max_tokens > max_positions:
        problem = f"this model has only {max_positions} positions"
        raise UserError(
            problem, setting="max_tokens", value=config.max_tokens, remedy=f"choose at most {max_positions}"
        )
    key = make_token_cache_key(
        hashes["train"],
        resolved.content,
        template,
        max_tokens=config.max_tokens,
        learn=config.learn,
        bos=tokenizer.bos,
    )
    options = {"max_tokens": config.max_tokens, "learn": config.learn}
    examples, counts = load_or_tokenize(
        get_cache_folder(), key, lambda: tokenize_with_progress(records, template, tokenizer, **options)
    )
    val_examples, _ = tokenize_records(val_records, template, tokenizer, **options)
    examples, val_examples = keep_with_target(examples), keep_with_target(val_examples)
    refuse_no_examples(config, examples, val_examples)
    return TrainInputs(
        device=device,
        template=template,
        model=model,
        data_hashes=hashes,
        preparation=read_preparation(config.data),
        records=records,
        examples=examples,
        truncation_counts=counts,
        val_examples=val_examples,
    )


def read_data(folder: Path) -> tuple[dict[str, str], list[Record], list[Record]]:
    """Read the training and validation records, once: the files may change while the run goes on.

    Returns:
        The sha256 of each file, the training records and the validation records.
    """
    files = [folder / "train.jsonl", folder / "val.jsonl"]
    missing = [path for path in files if not path.is_file()]
    if missing:
        problem = "there is no such file; make it with `loratune prepare`"
        raise UserError(*(f"{path}: {problem}" for path in missing))
    train, val = map(read_records, files)
    return {path.stem: hash_file(path) for path in files}, train, val


def read_preparation(folder: Path) -> dict:
    """Return the settings of FinQA's prompts, so that `ask` can build the same; empty if they are unknown."""
    try:
        settings = read_json(folder / "prepare_report.json")["settings"]
        return {name: settings[name] for name in ("fact_tokens", "finqa_target")}
    except (UserError, LookupError, TypeError):
        return {}  # data may come from another tool


def keep_with_target(examples: list[Example]) -> list[Example]:
    return [example for example in examples if example.response]


def refuse_no_examples(config: TrainConfig, examples: list[Example], val_examples: list[Example]) -> None:
    if not examples:
        raise UserError(
            f"{config.data / 'train.jsonl'}: no row has a response that fits in `max_tokens` "
            f"{config.max_tokens}"
        )
    if not val_examples:
        raise UserError(f"{config.data / 'val.jsonl'}: no usable rows; prepare with a larger `val_fraction`")
