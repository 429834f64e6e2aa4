"""Prepare training, validation and test data from shipped data, the hub or one's own files."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratune.config.base import format_flag
from loratune.config.prepare import PrepareConfig
from loratune.data.example import Record
from loratune.data.jsonl import format_records
from loratune.data.prepare_report import compute_token_statistics
from loratune.data.resolve_template import check_template_choice, fit_tokenizer, resolve_template
from loratune.data.sources.base import DataSet, SourceOptions
from loratune.data.sources.loaded import SourceData
from loratune.data.sources.paths import find_file_problem
from loratune.data.sources.resolve import (
    find_source,
    find_source_problem,
    list_shipped,
    list_unread_spreadsheets,
    resolve_data_sets,
)
from loratune.data.sources.split_names import detect_split
from loratune.data.sources.unsupported_files import REMEDIES
from loratune.data.sources.user_files import format_paths
from loratune.data.split import SPLITS
from loratune.data.split_sources import count_shared_rows, split_sources
from loratune.data.template import PromptTemplate
from loratune.data.tokenize import tokenize_with_progress
from loratune.errors import Problem, UserError, format_named_settings
from loratune.models.resolve import ResolvedModel, resolve_model
from loratune.models.tokenizer import Tokenizer
from loratune.system import hub
from loratune.system.atomic import format_json, refuse_unwritable, write_all_atomically
from loratune.system.messages import progress, say, warn
from loratune.tasks.registry import SOURCES, TASKS

CHUNK_ROWS = 1024  # texts between two moves of the progress bar


@dataclass(frozen=True)
class PreparedData:
    """Data in a folder, ready for `train`."""

    folder: Path
    report: dict[str, Any]  # as in prepare_report.json

    @property
    def rows(self) -> dict[str, int]:
        """The number of rows of train, val and test."""
        return self.report["rows"]

    @property
    def train(self) -> Path:
        return self.folder / "train.jsonl"

    @property
    def val(self) -> Path:
        return self.folder / "val.jsonl"

    @property
    def test(self) -> Path:
        return self.folder / "test.jsonl"


@dataclass(frozen=True)
class Preparation:
    """What is asked for, checked, and the tokenizer that counts."""

    config: PrepareConfig
    template: PromptTemplate
    base: ResolvedModel
    tokenizer: Tokenizer


def check_preparation(config: PrepareConfig) -> Preparation:
    """Check everything that can be checked before rows are read, and load the tokenizer.

    Raises:
        UserError: with everything that is wrong.
    """
    check_template_choice(config.template)
    refuse_unwritable(config.out, folder=True)
    refuse_unusable_sources(config)
    data_sets = find_data_sets(config)
    base = resolve_model(config.model)
    tokenizer = Tokenizer.load(base.folder)
    template = resolve_template(config.template, tokenizer)
    tokenizer = fit_tokenizer(tokenizer, template)
    show_splits(data_sets)
    for path in list_unread_spreadsheets(list_user_names(config)):
        warn(f"{path} is not read; {REMEDIES[path.suffix.lower()]}")
    return Preparation(config, template, base, tokenizer)


def run_preparation(preparation: Preparation) -> PreparedData:
    """Read, clean and split the rows, and write them with a report.

    Raises:
        UserError: rows cannot be used, or a part that is needed would be empty; nothing is written then.
    """
    config, template, tokenizer = preparation.config, preparation.template, preparation.tokenizer
    loaded = load_all(config, tokenizer, template)
    parts, counts = split_sources(loaded, seed=config.seed, val_fraction=config.val_fraction)
    counts = {name: write_options(count) for name, count in counts.items()}
    show_notes(counts)
    refuse_empty_parts(parts, config, own={one.split for one in loaded if one.own and one.split})
    records = [record for part in parts.values() for record in part]
    rows, shortened = tokenize_with_progress(
        records, template, tokenizer, max_tokens=config.max_tokens, learn=config.learn
    )
    texts = {f"{split}.jsonl": format_records(part) for split, part in parts.items()}
    of_tasks = [task.report_on(parts) for task in TASKS.values()]
    report = {
        "settings": config.model_dump(mode="json", exclude={"out", "dry_run"}),
        "tokenizer": preparation.base.hub_name,
        "rows": {split: len(part) for split, part in parts.items()},
        "in_held_out_files": count_shared_rows(loaded),
        "sources": {
            name: count | dict(shortened[name]) | compute_token_statistics(rows, name)
            for name, count in counts.items()
        },
        **{name: value for of_task in of_tasks for name, value in of_task.items()},
        "sha256": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()},
    }
    texts["prepare_report.json"] = format_json(report)  # last, because it speaks of the others
    write_all_atomically({config.out / name: text for name, text in texts.items()})
    return PreparedData(config.out, report)


def write_options(count: dict) -> dict:
    """Return a source's counts with the settings in its texts written as options."""

    def write(text: str) -> str:
        return format_named_settings(text, format_flag, PrepareConfig.model_fields.keys())

    count = count | {
        "left_out": {write(reason): number for reason, number in count["left_out"].items()},
        "notes": [write(note) for note in count["notes"]],
    }
    if "files" in count:
        count["files"] = [
            notes | {"warnings": [write(warning) for warning in notes["warnings"]]}
            for notes in count["files"]
        ]
    return count


def refuse_unusable_sources(config: PrepareConfig) -> None:
    """Raise UserError for every name of data that is wrong, before anything is read."""
    problems: list[str | Problem] = [
        f"`data` {problem}" for name in config.data if (problem := find_source_problem(name, SOURCES))
    ]
    for setting, names in (("val", config.val), ("test", config.test)):
        problems += [f"`{setting}` {problem}" for name in names if (problem := find_file_problem(name))]
    sources = [find_source(name, SOURCES) for name in config.data]
    if config.columns and all(source and not source.takes_columns for source in sources):
        problems.append(
            Problem(
                "says which columns your own data has, but `data` names none",
                "columns",
                remedy="leave it out",
            )
        )
    if problems:
        raise UserError(*problems)


def find_data_sets(config: PrepareConfig) -> list[DataSet]:
    return resolve_data_sets(config.data, config.val, config.test, sources=SOURCES)


def list_user_names(config: PrepareConfig) -> list[str]:
    """Return the names of the user's own files and folders."""
    names = [*config.data, *config.val, *config.test]
    return [name for name in names if (source := find_source(name, SOURCES)) and source.gathers_files]


def show_splits(data_sets: Sequence[DataSet]) -> None:
    """Say which of the user's own files are held out, and which only look as if they were."""
    for data_set in data_sets:
        held_out = {split: paths for split, paths in data_set.paths().items() if split}
        for split, paths in held_out.items():
            by_name = any(file.by_name for file in data_set.files if file.split == split)
            reason = ", as the name says" if by_name else ""
            say(f"{data_set.name}: {format_paths(paths)} for {split}.jsonl alone{reason}")
        named = [file.path for file in data_set.files if detect_split(file.path.name)]
        if named and not held_out:
            say(
                f"{data_set.name}: {format_paths(named)} split like any other file (`val` and `test` name "
                "files of your own for these)"
            )


def load_all(config: PrepareConfig, tokenizer: Tokenizer, template: PromptTemplate) -> list[SourceData]:
    options = build_source_options(config, tokenizer, template)
    return [
        source_data
        for data_set in find_data_sets(config)
        for source_data in data_set.source.load(data_set, options)
    ]


def check_conversation(record: Record, template: PromptTemplate) -> None:
    """Raise ValueError if a template cannot show a conversation."""
    if not record.messages:
        return
    try:
        template.check(record.messages, record.tools)
    except UserError as error:
        raise ValueError(error.details[0].quote()) from None


def build_source_options(
    config: PrepareConfig, tokenizer: Tokenizer, template: PromptTemplate
) -> SourceOptions:
    """Collect what sources need to know; the hub is asked only if a data set may come from it."""
    wants_shipped = bool(set(list_shipped(SOURCES)) & set(config.data))
    of_sources = {name for source in SOURCES.values() for name in source.settings}
    return SourceOptions(
        count_tokens=lambda texts, title: count_tokens(tokenizer, texts, title),
        from_hub=wants_shipped and resolve_origin(config.source) == "hub",
        columns=config.columns,
        skip_bad=config.skip_bad,
        check=lambda record: check_conversation(record, template),
        settings=config.model_dump(include=of_sources),
    )


def resolve_origin(source: str) -> str:
    if source != "auto":
        return source
    if hub.is_hub_reachable():
        say("Data: from the Hugging Face hub, because it answers (`source` snapshot takes the shipped copy).")
        return "hub"
    say("Data: the shipped snapshot, because the Hugging Face hub does not answer.")
    return "snapshot"


def count_tokens(tokenizer: Tokenizer, texts: Sequence[str], title: str) -> list[int]:
    """Count each text's tokens, with a progress bar of this title."""
    with progress(title, len(texts)) as advance:
        counts: list[int] = []
        for start in range(0, len(texts), CHUNK_ROWS):
            chunk = texts[start : start + CHUNK_ROWS]
            counts += map(len, tokenizer.encode_batch(chunk))
            advance(len(chunk))
    return counts


def refuse_empty_parts(
    parts: dict[str, list[Record]], config: PrepareConfig, own: Collection[str] = ()
) -> None:
    """Raise UserError where a part that is needed has no rows.

    Args:
        parts: the records of each split.
        config: what was asked for.
        own: the splits that files of the user's own are for.
    """
    if own and (lost := [split for split in SPLITS if not parts[split] and split in ("train", *own)]):
        raise UserError(
            f"nothing is left for {' and '.join(lost)}: all its rows are, or nearly are, in the files for a "
            "later part, too "
            "(train, val, test); name files that have no rows in common"
        )
    needed = ("train", "val") if config.val_fraction else ("train",)
    total = sum(map(len, parts.values()))
    if empty := [split for split in needed if not parts[split]]:
        rows = "1 row is" if total == 1 else f"{total:,} rows are"
        raise UserError(
            f"nothing is left for {' and '.join(empty)}: {rows} too few, or of too few groups, for training "
            "and validation; "
            "add rows, or give them no group or smaller ones"
        )
    if not parts["test"]:
        warn_no_test(config, own)


def warn_no_test(config: PrepareConfig, own: Collection[str]) -> None:
    remedy = "add rows, or give them no group or smaller ones"
    if own:
        remedy = f"name a file with `test`, or evaluate with `data` {config.out}/val.jsonl"
    elif not config.val_fraction:
        remedy = "`val_fraction` 0 holds nothing out; choose 0.05"
    warn(f"no rows for test.jsonl; evaluate needs some: {remedy}")


def show_notes(counts: dict[str, dict]) -> None:
    for name, count in counts.items():
        for note in count["notes"]:
            say(f"{name}: {note}")
