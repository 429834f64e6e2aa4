"""`loratune evaluate`: the base and the tuned model, or several tuned ones, on the same held-out rows."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from loratune.commands.dry_run import Plan, tell
from loratune.commands.loading import Tuned, load_side_by_side
from loratune.config.evaluate import EvaluateSettings
from loratune.data.example import Encoded, Record
from loratune.data.jsonl import read_records
from loratune.data.sample import draw_evenly
from loratune.data.template import BUILT_IN
from loratune.data.tokenize import encode_rows, end_markers, with_template, without_end_markers
from loratune.errors import UserError
from loratune.evaluation.aggregate import compared, forgotten, spread
from loratune.evaluation.estimate import answering_seconds, reading_seconds
from loratune.evaluation.examples import examples, telling
from loratune.evaluation.forgetting import Prose, load_prose, windows_of
from loratune.evaluation.result_cache import Notebook, notebook_of
from loratune.evaluation.runner import HeldOut, Measured, held_out, losses, measure
from loratune.evaluation.scoring import wants_program
from loratune.models.adapter import load_adapter
from loratune.models.lora import without_adapter
from loratune.models.resolve import cache_folder
from loratune.report.terminal.evaluation import show_evaluation
from loratune.report.terminal.prepared import end_markers_in_words
from loratune.system.atomic import refuse_unwritable, write_json
from loratune.system.console import say, warn
from loratune.tasks.finqa.constraint import constraints_for
from loratune.tasks.finqa.questions import with_gold_facts

PREPARED = Path("data/test.jsonl")
PARTS = ("dolly", "finqa")  # names of sources that stand for their rows in the prepared data
TOO_MANY_CUT = 0.05
BARE = BUILT_IN["plain"]


def run(settings: EvaluateSettings) -> dict:
    refuse_unwritable(settings.out)
    prose = load_prose(settings.forgetting)
    usable, without_facts = showing(read_held_out(settings.data), settings)
    records = draw_evenly(usable, settings.rows, settings.seed) if settings.rows else usable
    tuned = load_side_by_side(settings, settings.adapter)
    records, rows, shortened = encoded(records, tuned[0], settings.max_tokens)
    if settings.dry_run:
        return tell(planned(tuned, records, rows, settings, prose))
    result = {
        "base_model": tuned[0].base.name,
        "adapter": str(tuned[0].adapter),
        "data": settings.data,
        "template": tuned[0].template.name,
        "facts": settings.facts,
        "without_gold_facts": without_facts,
        "decoding": decoding_of(settings),
        "shortened": shortened,
        **evaluate_rows(tuned, records, rows, settings, prose, ids_of_part(usable, settings)),
    }
    write_json(settings.out, result)
    show_evaluation(result)
    say(f"Written: {settings.out}")
    return result


def planned(
    tuned: Sequence[Tuned], records: Sequence[Record], rows: Sequence[Encoded], settings: EvaluateSettings, prose: Prose
) -> Plan:
    first = tuned[0]
    place = {id(record): number for number, record in enumerate(records)}
    prompts = [rows[place[id(record)]].prompt for record in draw_evenly(records, settings.generate, settings.seed)]
    windows = windows_of(prose, first.tokenizer, first.decoder.spec.max_positions, settings.seed)
    models = len(tuned) + (2 if settings.bare and first.template != BARE else 1)
    seconds = evaluation_seconds(first.decoder, rows, prompts, windows, models, len(tuned), settings)
    reads = {
        settings.data: f"{len(rows):,} rows, {len(prompts):,} of them to answer, by {models} models",
        prose.name: f"{len(windows)} windows",
    }
    return Plan(reads, [settings.out], seconds, "timed on a small piece; less if answers end early, or are known")


def evaluation_seconds(
    decoder,
    rows: Sequence[Encoded],
    prompts: Sequence[list[int]],
    windows: Sequence[Encoded],
    models: int,
    adapters: int,
    settings: EvaluateSettings,
) -> float:
    """Every model reads the rows and answers the prompts, the base and each adapter read the plain text."""
    of_each = reading_seconds(decoder, rows) + answering_seconds(decoder, prompts, settings, settings.samples)
    return models * of_each + (1 + adapters) * reading_seconds(decoder, windows)


def read_held_out(data: str) -> list[Record]:
    """The rows of a file, or those of one source in the prepared test data."""
    path = PREPARED if data in PARTS else Path(data)
    if not path.is_file():
        raise UserError(f"--data {data}: there is no file {path}; make it with `loratune prepare`, or name another")
    records = read_records(path)
    if data in PARTS:
        records = [record for record in records if record.source == data]
    if not records:
        raise UserError(f"--data {data}: {path} has no rows of this source")
    return records


def showing(records: Sequence[Record], settings: EvaluateSettings) -> tuple[list[Record], int]:
    """FinQA's rows with the facts that are wanted, other rows as they are; and how many rows are left out for want of these."""
    if settings.facts == "retrieved":
        return list(records), 0
    found = [with_gold_facts(record) if "facts" in record.meta else record for record in records]
    kept = [record for record in found if record]
    if not any(record.meta.get("facts") == "gold" for record in kept):
        raise UserError(f"--facts gold: no row of --data {settings.data} has known gold facts; FinQA's val.jsonl has some")
    if left_out := len(found) - len(kept):
        warn(f"{left_out:,} of {len(found):,} rows are left out: their gold facts are unknown")
    return kept, left_out


def ids_of_part(records: Sequence[Record], settings: EvaluateSettings) -> int | None:
    """How many questions the official part has that FinQA's rows are of; None where not all its rows are to be answered."""
    programs = [record.meta.get("split_ids") for record in records if wants_program(record)]
    if min(settings.rows or len(records), settings.generate) < len(records) or len(set(map(str, programs))) != 1:
        return None
    return programs[0] if isinstance(programs[0], int) and programs[0] >= len(programs) else None


def encoded(records: Sequence[Record], tuned: Tuned, max_tokens: int) -> tuple[list[Record], list[Encoded], dict]:
    """The records that have a target, their tokens, and how many were shortened or dropped, for each source."""
    limit = longest(tuned, max_tokens)
    numbered = [replace(record, id=str(number)) for number, record in enumerate(records)]
    rows, counts = encode_rows(numbered, tuned.template, tuned.tokenizer, limit)
    if not rows:
        raise UserError(f"--max-tokens {limit}: none of the rows has room for a target; raise it")
    if tuned.tokenizer.bos:
        say(f"Each prompt begins with the BOS token {tuned.tokenizer.bos_text}, for every model.")
    for source, count in counts.items():
        if markers_told := end_markers_in_words(count):
            say(f"{source}: {markers_told}.")
        cut = count["inputs_cut"] + count["responses_cut"] + count["dropped"]
        if cut > TOO_MANY_CUT * count["rows"]:
            warn(f"{source}: {cut:,} of {count['rows']:,} rows were shortened or dropped to fit in {limit:,} tokens")
    markers = end_markers(tuned.tokenizer)
    kept = [records[int(row.id)] for row in rows]
    # Answers are compared with what a model is to write, which is the output without the marker.
    return [replace(record, output=without_end_markers(record.output, markers)) for record in kept], rows, counts


def longest(tuned: Tuned, max_tokens: int) -> int:
    return min(max_tokens, tuned.decoder.spec.max_positions)


def evaluate_rows(
    tuned: Sequence[Tuned],
    records: Sequence[Record],
    rows: Sequence[Encoded],
    settings: EvaluateSettings,
    prose: Prose,
    ids: int | None,
) -> dict:
    """Everything measured. `rows` are the tokens of `records`; the adapters share a decoder, and the first is on it;
    `ids` is the number of questions in FinQA's part, where all are to be answered.

    With one adapter the result is its part; with several it is the first's, and `adapters` has all of them.
    """
    first, seed = tuned[0], settings.seed
    place = {id(record): number for number, record in enumerate(records)}
    answered = [place[id(record)] for record in draw_evenly(records, settings.generate, seed)]
    constraints = constraints_for([records[number] for number in answered], first.tokenizer) if settings.constrain else None
    over = held_out(records, rows, answered, first.tokenizer, constraints, ids)
    windows = windows_of(prose, first.tokenizer, first.decoder.spec.max_positions, seed)

    with without_adapter(first.decoder):
        notebook = notebook_for(first, None)
        baselines = measured_baselines(first, over, rows, settings, notebook)
        base_prose = losses("base on plain text", first.decoder, windows, notebook)
    models, parts = [], []
    for one, name in zip(tuned, titles(len(tuned)), strict=True):
        load_adapter(one.decoder, one.adapter)
        notebook = notebook_for(one, one.adapter)
        model = measure(name, one.decoder, one.tokenizer, over, rows, settings, notebook)
        refuse_broken(model.nll, one)
        prose_nll = losses(f"{name} on plain text", one.decoder, windows, notebook)
        on_prose = forgotten(windows, base_prose, prose_nll, seed)
        models.append(model)
        parts.append(
            {
                **compared(over, {**baselines, "tuned": model}, seed),
                "forgetting": {"text": prose.name, "windows": len(windows), **on_prose},
                "telling": telling(over, baselines["base"], model),
            }
        )
    return {**parts[0], **side_by_side(tuned, parts), "examples": examples(over, baselines, models)}


def notebook_for(tuned: Tuned, adapter: Path | None) -> Notebook:
    return notebook_of(cache_folder(), tuned.base.content, adapter, tuned.decoder.head_weight.device.type)


def measured_baselines(
    tuned: Tuned, over: HeldOut, rows: Sequence[Encoded], settings: EvaluateSettings, notebook: Notebook
) -> dict[str, Measured]:
    """The base with the adapter's template, and with a bare prompt; where that is the template, one pass serves both."""
    base = measure("base", tuned.decoder, tuned.tokenizer, over, rows, settings, notebook)
    if not settings.bare:
        return {"base": base}
    if tuned.template == BARE:
        return {"base": base, "base_bare": base}
    bare = with_template(over.records, rows, BARE, tuned.tokenizer, longest(tuned, settings.max_tokens))
    return {"base": base, "base_bare": measure("bare base", tuned.decoder, tuned.tokenizer, over, bare, settings, notebook)}


def titles(count: int) -> list[str]:
    return ["tuned"] if count == 1 else [f"tuned {number}" for number in range(1, count + 1)]


def refuse_broken(nll: np.ndarray, tuned: Tuned) -> None:
    if not np.isfinite(nll).all():
        raise UserError(f"--adapter {tuned.adapter}: its losses are not finite numbers; the adapter is broken, train it again")


def side_by_side(tuned: Sequence[Tuned], parts: Sequence[dict]) -> dict:
    """`adapters` and their `spread`; empty for one alone."""
    if len(parts) == 1:
        return {}
    adapters = [{"adapter": str(one.adapter), **part} for one, part in zip(tuned, parts, strict=True)]
    return {"adapters": adapters, "spread": {**spread(parts), "forgetting": spread([part["forgetting"] for part in parts])}}


def decoding_of(settings: EvaluateSettings) -> dict:
    """The settings that the answers depend on; empty if none were written."""
    names = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed", "samples", "constrain")
    return {name: getattr(settings, name) for name in names} if settings.generate else {}
