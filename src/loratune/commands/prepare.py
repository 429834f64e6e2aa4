"""`loratune prepare`: training, validation and test data from shipped data, the hub or one's own files."""

import hashlib
import time
from collections import Counter
from collections.abc import Collection, Sequence

from loratune.commands.dry_run import Plan, show_plan
from loratune.config.base import format_flag
from loratune.config.prepare import PrepareConfig
from loratune.data.dedup import hash_content, remove_duplicates
from loratune.data.example import Example, Record
from loratune.data.jsonl import format_records
from loratune.data.leakage import remove_leaks, remove_near_duplicates
from loratune.data.prepare_report import compute_token_statistics, count_source_rows
from loratune.data.sample import draw_stratified_sample
from loratune.data.sources.base import DataSet, SourceOptions, Survey
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
from loratune.data.split import HELD_OUT, SPLITS, choose_drawn_splits, split_records
from loratune.data.template import Template, load_template
from loratune.data.tokenize import tokenize_records
from loratune.errors import Problem, UserError, format_named_settings
from loratune.models.resolve import resolve_model
from loratune.models.tokenizer import Tokenizer
from loratune.report.terminal.prepared import show_summary
from loratune.system import hub
from loratune.system.atomic import format_json, refuse_unwritable, write_all_atomically
from loratune.system.console import progress, say, warn
from loratune.tasks.registry import SOURCES, TASKS

OUTPUT_FILES = (*(f"{split}.jsonl" for split in SPLITS), "prepare_report.json")
TIMED_ROWS = 256  # rows of each source whose tokens are counted for a forecast
ENCODE_CHUNK_ROWS = 1024  # rows between two moves of the progress bar


def run(settings: PrepareConfig) -> dict:
    template = load_template(settings.template)
    refuse_unwritable(settings.out, folder=True)
    refuse_unusable_sources(settings)
    data_sets = find_data_sets(settings)
    base = resolve_model(settings.model)
    tokenizer = Tokenizer.load(base.folder)
    show_splits(data_sets)
    for path in list_unread_spreadsheets(list_user_names(settings)):
        warn(f"{path} is not read; {REMEDIES[path.suffix.lower()]}")
    if settings.dry_run:
        return show_plan(plan_preparation(settings, survey_all(settings, tokenizer), template, tokenizer))
    loaded = load_all(settings, tokenizer)
    parts, counts = split_all(loaded, settings)
    counts = {name: write_options(count) for name, count in counts.items()}
    show_notes(counts)
    refuse_empty_parts(parts, settings, own={one.split for one in loaded if one.own and one.split})
    rows, shortened = encode_all(
        [record for part in parts.values() for record in part], template, tokenizer, settings.max_tokens
    )
    texts = {f"{split}.jsonl": format_records(part) for split, part in parts.items()}
    of_tasks = [task.report_on(parts) for task in TASKS.values()]
    report = {
        "settings": settings.model_dump(mode="json", exclude={"out", "dry_run"}),
        "tokenizer": base.hub_name,
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
    write_all_atomically({settings.out / name: text for name, text in texts.items()})
    show_summary(
        report, settings.out, [line for task in TASKS.values() for line in task.explain_report(report)]
    )
    if shared := report["in_held_out_files"]:
        say(
            "Rows that are in your own files for val or test, too, and are therefore not trained on: "
            f"{shared:,}"
        )
    return report


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


def count_shared_rows(loaded: Sequence[SourceData]) -> int:
    """Rows that are in a file of the user's own for a held-out part, too, and therefore not trained on."""
    held_out = {hash_content(record) for one in loaded if one.own for record in one.records}
    return sum(hash_content(record) in held_out for one in loaded if not one.own for record in one.records)


def refuse_unusable_sources(settings: PrepareConfig) -> None:
    """Refuse all names of data that can be seen to be wrong before anything is read."""
    problems: list[str | Problem] = [
        f"--data {problem}" for name in settings.data if (problem := find_source_problem(name, SOURCES))
    ]
    for option, names in (("--val", settings.val), ("--test", settings.test)):
        problems += [f"{option} {problem}" for name in names if (problem := find_file_problem(name))]
    sources = [find_source(name, SOURCES) for name in settings.data]
    if settings.columns and all(source and not source.takes_columns for source in sources):
        problems.append(
            Problem(
                "says which columns your own data has, but `data` names none",
                "columns",
                remedy="leave it out",
            )
        )
    if problems:
        raise UserError(*problems)


def find_data_sets(settings: PrepareConfig) -> list[DataSet]:
    return resolve_data_sets(settings.data, settings.val, settings.test, sources=SOURCES)


def list_user_names(settings: PrepareConfig) -> list[str]:
    """Return the names that stand for the user's own files."""
    names = [*settings.data, *settings.val, *settings.test]
    return [name for name in names if (source := find_source(name, SOURCES)) and source.gathers_files]


def show_splits(data_sets: Sequence[DataSet]) -> None:
    """Say which of the user's own files are held out, and which one could take for held out."""
    for data_set in data_sets:
        held_out = {split: paths for split, paths in data_set.paths().items() if split}
        for split, paths in held_out.items():
            by_name = any(file.by_name for file in data_set.files if file.split == split)
            reason = ", as the name says" if by_name else ""
            say(f"{data_set.name}: {format_paths(paths)} for {split}.jsonl alone{reason}")
        named = [file.path for file in data_set.files if detect_split(file.path.name)]
        if named and not held_out:
            say(
                f"{data_set.name}: {format_paths(named)} split like any other file (--val and --test name "
                "files of your own for these)"
            )


def plan_preparation(
    settings: PrepareConfig, surveys: Sequence[Survey], template: Template, tokenizer: Tokenizer
) -> Plan:
    """Tokens are counted for some rows of each source, and that is timed."""
    reads = {
        one.name: f"{one.origin}, {'not downloaded yet' if one.rows is None else f'{one.rows:,} rows'}"
        for one in surveys
    }
    writes = [settings.out / name for name in OUTPUT_FILES]
    if any(one.rows is None for one in surveys):
        return Plan(reads, writes, None, "it depends on the download")
    seconds = sum(
        one.seconds + estimate_encoding_seconds(one, template, tokenizer, settings.max_tokens)
        for one in surveys
    )
    return Plan(reads, writes, seconds, "timed on some of the rows")


def estimate_encoding_seconds(
    survey: Survey, template: Template, tokenizer: Tokenizer, max_tokens: int
) -> float:
    some = draw_stratified_sample(survey.sample, TIMED_ROWS, seed=0)
    started = time.perf_counter()
    tokenize_records(some, template, tokenizer, max_tokens=max_tokens)
    return (time.perf_counter() - started) * (survey.rows or 0) / max(len(some), 1)


def survey_all(settings: PrepareConfig, tokenizer: Tokenizer) -> list[Survey]:
    """Tell what each data set holds, without a download."""
    options = build_source_options(settings, tokenizer)
    return [data_set.source.survey(data_set, options) for data_set in find_data_sets(settings)]


def load_all(settings: PrepareConfig, tokenizer: Tokenizer) -> list[SourceData]:
    options = build_source_options(settings, tokenizer)
    return [
        source_data
        for data_set in find_data_sets(settings)
        for source_data in data_set.source.load(data_set, options)
    ]


def build_source_options(settings: PrepareConfig, tokenizer: Tokenizer) -> SourceOptions:
    """Collect what sources may be asked; whether the hub answers is only tried where that matters."""
    wants_shipped = bool(set(list_shipped(SOURCES)) & set(settings.data))
    of_sources = {name for source in SOURCES.values() for name in source.settings}
    return SourceOptions(
        count_tokens=lambda texts, title: count_tokens(tokenizer, texts, title),
        from_hub=wants_shipped and resolve_origin(settings.source) == "hub",
        columns=settings.columns,
        skip_bad=settings.skip_bad,
        settings=settings.model_dump(include=of_sources),
    )


def resolve_origin(source: str) -> str:
    if source != "auto":
        return source
    if hub.is_hub_reachable():
        say("Data: from the Hugging Face hub, because it answers (--source snapshot takes the shipped copy).")
        return "hub"
    say("Data: the shipped snapshot, because the Hugging Face hub does not answer.")
    return "snapshot"


def count_tokens(tokenizer: Tokenizer, texts: Sequence[str], title: str) -> list[int]:
    """Count each text's tokens, with a progress bar of this title."""
    with progress(title, len(texts)) as advance:
        counts: list[int] = []
        for start in range(0, len(texts), ENCODE_CHUNK_ROWS):
            chunk = texts[start : start + ENCODE_CHUNK_ROWS]
            counts += map(len, tokenizer.encode_batch(chunk))
            advance(len(chunk))
    return counts


def split_all(
    loaded: Sequence[SourceData], settings: PrepareConfig
) -> tuple[dict[str, list[Record]], dict[str, dict]]:
    """The three parts, and for each source what became of its rows."""
    # Of duplicates the first stays: that of the latest part, whatever the order in which the sources were
    # named.
    ranked = sorted(loaded, key=lambda one: SPLITS.index(one.split) if one.split else -1, reverse=True)
    # Official held-out splits, whose rows have groups, are scored over all of their ids, also where one page
    # was asked the same twice. The user's own held-out files stay whole, too.
    official = [
        one.records
        for one in ranked
        if one.split in HELD_OUT and (one.own or all(record.group for record in one.records))
    ]
    distinct = remove_duplicates([record for one in ranked for record in one.records], official)
    by_content = {hash_content(record): one.split for one in reversed(ranked) for record in one.records}
    own_split = {record.id: by_content[hash_content(record)] for record in distinct}
    held_out = {(one.name, one.split) for one in loaded if one.own}
    kept = {record.id for record in distinct if (record.source, own_split[record.id]) in held_out}
    # A source may fix both the splits and the groups, such as pages; everything else is grouped by likeness.
    fixed = [record for record in distinct if record.group and own_split[record.id] and record.id not in kept]
    stand = {record.id for record in fixed}
    others = [record for record in distinct if record.id not in stand]
    how = {
        "drawn_splits": choose_drawn_splits(loaded),
        "seed": settings.seed,
        "val_fraction": settings.val_fraction,
    }
    divided = split_records(others, own_split, **how)
    parts: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for record in fixed:
        parts[own_split[record.id] or "train"].append(record)
    for record, split in zip(divided.records, divided.splits, strict=True):
        parts[split].append(record)
    parts, copies = remove_near_duplicates(
        parts, fixed + [record for record in divided.records if record.id in kept], kept
    )
    parts, leaks = remove_leaks(parts, kept)
    return parts, {
        name: count_source_rows(name, loaded, distinct, splits=parts, leaks=copies + leaks)
        | {"notes": [*divided.notes.get(name, []), *describe_missing_targets(name, parts)]}
        for name in dict.fromkeys(one.name for one in loaded)
    }


def describe_missing_targets(source: str, parts: dict[str, list[Record]]) -> list[str]:
    counts = {
        split: sum(one.source == source and not one.has_target for one in part)
        for split, part in parts.items()
    }
    return [
        f"rows in {split} without a wanted response, which are answered and scored by their result, and in "
        f"no loss: {count:,}"
        for split, count in counts.items()
        if count
    ]


def refuse_empty_parts(
    parts: dict[str, list[Record]], settings: PrepareConfig, own: Collection[str] = ()
) -> None:
    """Raise UserError where a part that is needed has no rows. `own` are those that files of the user's own
    are for.
    """
    if own and (lost := [split for split in SPLITS if not parts[split] and split in ("train", *own)]):
        raise UserError(
            f"nothing is left for {' and '.join(lost)}: all its rows are, or nearly are, in the files for a "
            "later part, too "
            "(train, val, test); name files that have no rows in common"
        )
    needed = ("train", "val") if settings.val_fraction else ("train",)
    total = sum(map(len, parts.values()))
    if empty := [split for split in needed if not parts[split]]:
        rows = "1 row is" if total == 1 else f"{total:,} rows are"
        raise UserError(
            f"nothing is left for {' and '.join(empty)}: {rows} too few, or of too few groups, for training "
            "and validation; "
            "add rows, or give them no group or smaller ones"
        )
    if not parts["test"]:
        warn_no_test(settings, own)


def warn_no_test(settings: PrepareConfig, own: Collection[str]) -> None:
    remedy = "add rows, or give them no group or smaller ones"
    if own:
        remedy = f"name a file with --test, or evaluate with --data {settings.out}/val.jsonl"
    elif not settings.val_fraction:
        remedy = "--val-fraction 0 holds nothing out; choose 0.05"
    warn(f"no rows for test.jsonl; evaluate needs some: {remedy}")


def show_notes(counts: dict[str, dict]) -> None:
    for name, count in counts.items():
        for note in count["notes"]:
            say(f"{name}: {note}")


def encode_all(
    records: Sequence[Record], template: Template, tokenizer: Tokenizer, max_tokens: int
) -> tuple[list[Example], dict[str, dict[str, int]]]:
    """The rows as training will see them, and for each source how many were shortened or dropped."""
    rows: list[Example] = []
    shortened: dict[str, Counter[str]] = {record.source: Counter() for record in records}
    with progress("tokens of the rows", len(records)) as advance:
        for start in range(0, len(records), ENCODE_CHUNK_ROWS):
            chunk = records[start : start + ENCODE_CHUNK_ROWS]
            encoded, counts = tokenize_records(chunk, template, tokenizer, max_tokens=max_tokens)
            rows += encoded
            for source, count in counts.items():
                shortened[source].update(count)
            advance(len(chunk))
    return rows, {source: dict(count) for source, count in shortened.items()}
