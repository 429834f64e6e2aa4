"""Read the held-out rows, draw those that are measured and answered, and tokenise them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loratune.data.end_markers import describe_end_markers, list_end_markers, strip_end_markers
from loratune.data.example import Example, Record
from loratune.data.jsonl import read_records
from loratune.data.sample import draw_stratified_sample
from loratune.data.sources.resolve import list_shipped
from loratune.data.tokenize import tokenize_records
from loratune.errors import UserError
from loratune.evaluation.runner import (
    AnswerSettings,
)
from loratune.model import TunedModel
from loratune.system.messages import say, warn
from loratune.tasks.registry import SOURCES, TASKS, select_row_facts, task_of

PREPARED_TEST_DATA = Path("data/test.jsonl")
WARN_SHARE = 0.05  # share of a source's rows from which on truncation is worth a warning


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured on which rows. The command line's options have the same names."""

    answers: AnswerSettings
    facts: str = "retrieved"  # retrieved or gold
    rows: int = 0  # rows that are measured; 0: all
    generate: int = 32  # rows that are answered
    bare: bool = True  # whether the base without template is measured, too
    own_template: bool = True  # whether the base is measured in its own chat template, too
    constrain: bool = False  # whether answers are constrained to what their task can score
    max_tokens: int = 1024  # tokens of an example
    seed: int = 0  # of the choice of rows and of the bootstrap


@dataclass(frozen=True)
class Selection:
    """The rows that are measured, before they are tokenised."""

    data: str  # as the user named it
    records: list[Record]
    without_gold_facts: int  # rows that were left out
    split_ids: dict[str, int]  # ids in the official split of each task whose rows are all answered


@dataclass(frozen=True)
class HeldOut:
    """The rows that have room for a target, as records and as tokens."""

    records: list[Record]  # their outputs without end markers
    examples: list[Example]
    shortened: dict[str, dict[str, int]]  # source -> what happened to its rows -> how many
    answered: list[int]  # numbers of the rows that are answered


def select_rows(data: str, settings: EvaluationSettings) -> Selection:
    """Read the rows and draw those that are measured.

    Args:
        data: a file, or a shipped data set, whose rows in the prepared test data are meant.
        settings: `facts`, `rows`, `generate` and `seed` matter here.

    Raises:
        UserError: there is no such file, it is broken, or it has no such rows.
    """
    usable, without_gold_facts = select_facts(read_evaluation_records(data), data, facts=settings.facts)
    records = draw_stratified_sample(usable, settings.rows, settings.seed) if settings.rows else usable
    return Selection(data, records, without_gold_facts, count_split_ids(usable, settings))


def read_evaluation_records(data: str) -> list[Record]:
    """Read the rows of a file, or the rows of one source in the prepared test data."""
    is_source = data in list_shipped(SOURCES)  # its name stands for its rows in the prepared data
    path = PREPARED_TEST_DATA if is_source else Path(data)
    if not path.is_file():
        raise UserError(
            f"there is no file {path}",
            setting="data",
            value=data,
            remedy="make it with `loratune prepare`, or name another",
        )
    records = read_records(path)
    if is_source:
        records = [record for record in records if record.source == data]
    if not records:
        raise UserError(f"{path} has no rows of this source", setting="data", value=data)
    return records


def select_facts(records: Sequence[Record], data: str, *, facts: str) -> tuple[list[Record], int]:
    """Return the rows with this kind of facts, and how many are left out because theirs are unknown.

    Rows that have no choice of facts stay as they are.
    """
    if facts == "retrieved":
        return list(records), 0
    selected = [select_row_facts(record, facts) for record in records]
    usable = [record for record in selected if record]
    if not any(record and record is not whole for record, whole in zip(selected, records, strict=True)):
        raise UserError(
            f"no row of `data` {data} has known {facts} facts",
            setting="facts",
            value=facts,
            remedy="FinQA's val.jsonl has some",
        )
    if left_out := len(selected) - len(usable):
        warn(f"{left_out:,} of {len(selected):,} rows are left out: their {facts} facts are unknown")
    return usable, left_out


def count_split_ids(records: Sequence[Record], settings: EvaluationSettings) -> dict[str, int]:
    """Count the ids of each task's official split; empty unless all rows are answered."""
    if min(settings.rows or len(records), settings.generate) < len(records):
        return {}
    counts = {
        name: task.count_split_ids([record for record in records if task_of(record) is task])
        for name, task in TASKS.items()
    }
    return {name: count for name, count in counts.items() if count}


def tokenize_held_out(records: Sequence[Record], model: TunedModel, settings: EvaluationSettings) -> HeldOut:
    """Tokenise the rows, and draw those that are answered.

    Raises:
        UserError: no row has room for a target.
    """
    limit = limit_tokens(model, settings.max_tokens)
    numbered = [replace(record, id=str(number)) for number, record in enumerate(records)]
    # The last answer alone, because templates without a form for turns know no other targets.
    examples, counts = tokenize_records(
        numbered, model.template, model.tokenizer, max_tokens=limit, learn="last"
    )
    if not examples:
        raise UserError(
            "none of the rows has room for a target", setting="max_tokens", value=limit, remedy="raise it"
        )
    if model.tokenizer.bos:
        say(f"Each prompt begins with the BOS token {model.tokenizer.bos_text}, for every model.")
    for source, count in counts.items():
        if markers_removed := describe_end_markers(count):
            say(f"{source}: {markers_removed}.")
        cut = count["inputs_cut"] + count["responses_cut"] + count["dropped"]
        if cut > WARN_SHARE * count["rows"]:
            warn(
                f"{source}: {cut:,} of {count['rows']:,} rows were shortened or dropped to fit in {limit:,} "
                "tokens"
            )
    # Answers are compared with what a model is to write, which is the output without the marker.
    markers = list_end_markers(model.tokenizer)
    whole = [records[int(example.id)] for example in examples]
    records = [replace(record, output=strip_end_markers(record.output, markers)) for record in whole]
    number_of = {id(record): number for number, record in enumerate(records)}
    with_prompt = [record for record in records if not record.is_text]
    drawn = draw_stratified_sample(with_prompt, settings.generate, settings.seed)
    return HeldOut(records, examples, counts, [number_of[id(record)] for record in drawn])


def limit_tokens(model: TunedModel, max_tokens: int) -> int:
    return min(max_tokens, model.decoder.spec.max_positions)
