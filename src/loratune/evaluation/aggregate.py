"""Aggregate scores and losses over all rows, each source and each category.

`models` holds the results of `base` and `tuned`, and perhaps of `base_bare` (the base without template) and
`base_chat` (the base in its own chat template).
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from loratune.data.example import Example, Record
from loratune.evaluation.likelihood import compute_likelihood_means, compute_token_means, count_targets
from loratune.evaluation.metrics import METRICS
from loratune.evaluation.result import (
    BASES,
    AdapterEvaluation,
    EvaluationPart,
    Forgetting,
    Measures,
    ScoreChange,
    Spread,
)
from loratune.evaluation.runner import EvaluationSet, ModelResult
from loratune.evaluation.scoring import ScoredAnswer
from loratune.evaluation.statistics import count_flips, mean_and_deviation, paired_difference
from loratune.tasks.registry import TASKS, task_of

TIE_THRESHOLD = 0.01  # nats a token: a row's loss that changes by less is tied


def find_lowest_loss_base(evaluation_set: EvaluationSet, models: dict[str, ModelResult]) -> str:
    """Return the base with the lowest loss: rows are counted as improved or regressed against it."""
    with_target = select_with_target(evaluation_set, range(len(evaluation_set.records)))
    bases = [name for name in BASES if name in models]
    if models.get("base_chat") is models["base"]:  # the adapter was trained in the base's own template
        bases.remove("base")
    return min(bases, key=lambda name: float(models[name].nll[with_target].sum()))


def aggregate_by(
    evaluation_set: EvaluationSet,
    models: dict[str, ModelResult],
    get_group: Callable[[Record], str | None],
    *,
    seed: int,
) -> dict[str, EvaluationPart]:
    """Aggregate each group of rows; rows without a group are in none."""
    groups: dict[str, list[int]] = {}
    for row, record in enumerate(evaluation_set.records):
        if group := get_group(record):
            groups.setdefault(group, []).append(row)
    return {
        group: aggregate_rows(evaluation_set, models, rows, seed=seed)
        for group, rows in sorted(groups.items())
    }


def get_source(record: Record) -> str:
    return record.source


def get_category(record: Record) -> str | None:
    """Return the row's task category, such as Dolly's rows have; None for a row without one."""
    category = record.meta.get("category")
    return category if isinstance(category, str) and category.strip() else None


def aggregate_rows(
    evaluation_set: EvaluationSet, models: dict[str, ModelResult], rows: Sequence[int], *, seed: int
) -> EvaluationPart:
    """Summarise each model on these rows, the differences with intervals, and how many rows improved.

    Args:
        evaluation_set: what the models were measured on.
        models: the results by name; `base` and `tuned` are required.
        rows: the numbers of the rows.
        seed: of the bootstrap.
    """
    tuned = models["tuned"]
    reference = models[find_lowest_loss_base(evaluation_set, models)]
    answered = [number for number in rows if number in tuned.answers[0]]
    has_samples = bool(answered) and len(tuned.answers) > 1
    measures = {name: summarize_model(evaluation_set, model, rows) for name, model in models.items()}
    differences = {
        name: compute_difference(evaluation_set, models[name], tuned, rows=rows, seed=seed)
        for name in BASES
        if name in models
    }
    return EvaluationPart(
        rows=len(rows),
        without_target=len(rows) - len(select_with_target(evaluation_set, rows)),
        answered_rows=len(answered),
        split_ids=sum(evaluation_set.split_ids[task] for task in count_missing_ids(evaluation_set, rows)),
        base=measures["base"],
        base_bare=measures.get("base_bare"),
        base_chat=measures.get("base_chat"),
        tuned=measures["tuned"],
        over_samples=compute_deviations(evaluation_set, models, rows) if has_samples else {},
        difference=differences["base"],
        difference_bare=differences.get("base_bare", {}),
        difference_chat=differences.get("base_chat", {}),
        **summarize_flips(evaluation_set, reference, tuned, rows=rows),
        tie_threshold=TIE_THRESHOLD,
        chosen_facts=describe_fact_choice([evaluation_set.records[number] for number in answered]),
    )


def summarize_model(evaluation_set: EvaluationSet, model: ModelResult, rows: Sequence[int]) -> Measures:
    """Summarise one model on these rows.

    A loss is one global sum over one global count; a score is its mean over the samples and the rows that it
    applies to.
    """
    with_target = select_with_target(evaluation_set, rows)
    losses = {}
    if with_target:
        losses = compute_likelihood_means(
            model.nll[with_target], evaluation_set.targets[with_target], evaluation_set.sizes[with_target]
        )
        contents = (evaluation_set.targets - evaluation_set.ends)[with_target]
        if contents.sum():
            content_nll = (model.nll - model.end_nll)[with_target]
            losses["content_nll"] = float(content_nll.sum() / contents.sum())
    scores = {name: fmean(values) for name, values in average_per_sample(evaluation_set, model, rows).items()}
    return {**losses, **scores}


def select_with_target(evaluation_set: EvaluationSet, rows: Sequence[int]) -> list[int]:
    """Return the rows that have a reference response; losses are computed over them."""
    return [number for number in rows if evaluation_set.targets[number] > 0]


def compute_deviations(
    evaluation_set: EvaluationSet, models: dict[str, ModelResult], rows: Sequence[int]
) -> dict[str, dict[str, Spread]]:
    """Return the mean and standard deviation over the samples of each model's scores."""
    return {
        name: {
            score: Spread(**mean_and_deviation(values))
            for score, values in average_per_sample(evaluation_set, model, rows).items()
        }
        for name, model in models.items()
    }


def average_per_sample(
    evaluation_set: EvaluationSet, model: ModelResult, rows: Sequence[int]
) -> dict[str, list[float]]:
    """Return each score over these rows as one value for each sample."""
    scores: dict[str, list[float]] = {}
    for answers in model.answers:
        sample_scores = {
            name: fmean(values.values())
            for name, values in collect_scores(evaluation_set, answers, rows).items()
        }
        if answer_ids := [answers[number].answer.ids for number in rows if number in answers]:
            for name, metric in METRICS.items():
                if metric.score_all:
                    sample_scores[name] = metric.score_all(answer_ids)
        for name, value in sample_scores.items():
            scores.setdefault(name, []).append(value)
    return scores


def average_per_row(
    evaluation_set: EvaluationSet, model: ModelResult, rows: Sequence[int]
) -> dict[str, list[float]]:
    """Return each score as one value for each row that it applies to: its mean over the samples."""
    samples = [collect_scores(evaluation_set, answers, rows) for answers in model.answers]
    return {
        name: [fmean(sample[name][row] for sample in samples) for row in values]
        for name, values in samples[0].items()
    }


def collect_scores(
    evaluation_set: EvaluationSet, answers: Mapping[int, ScoredAnswer], rows: Sequence[int]
) -> dict[str, dict[int, float]]:
    """Return, for each score, its value for each row that it applies to.

    A score over an official split (`..._all`) counts the split's ids that have no row as 0, under negative
    row numbers.
    """
    scores: dict[str, dict[int, float]] = {}
    for number in rows:
        if number in answers:
            for name, value in answers[number].scores.items():
                scores.setdefault(name, {})[number] = value
    for name, missing in count_missing_ids(evaluation_set, rows).items():
        wrong = {-number: 0.0 for number in range(1, missing + 1)}
        scores |= {f"{score}_all": scores[score] | wrong for score in TASKS[name].scores_over_split}
    return scores


def count_missing_ids(evaluation_set: EvaluationSet, rows: Sequence[int]) -> dict[str, int]:
    """Return how many ids of its official split have no row, for each task whose rows are all in `rows`."""
    in_rows = Counter(task_of(evaluation_set.records[number]) for number in rows)
    in_all = Counter(map(task_of, evaluation_set.records))
    missing = {}
    for name, ids in evaluation_set.split_ids.items():
        task = TASKS[name]
        if 0 < in_rows[task] == in_all[task]:
            missing[name] = ids - in_rows[task]
    return missing


def describe_fact_choice(records: Sequence[Record]) -> str:
    """Say how the facts in the rows were chosen; "" where no row has any."""
    return " and ".join(sorted({task_of(record).describe_facts(record) for record in records} - {""}))


def compute_difference(
    evaluation_set: EvaluationSet, base: ModelResult, tuned: ModelResult, *, rows: Sequence[int], seed: int
) -> dict[str, ScoreChange]:
    """Compute tuned minus base for each measure, with an interval.

    Perplexity is left out because it follows from nll, and distinct_2 because it cannot be bootstrapped: an
    answer that is drawn twice repeats itself.
    """
    differences = {}
    if with_target := select_with_target(evaluation_set, rows):
        before, after = base.nll[with_target], tuned.nll[with_target]
        bits = math.log(2)
        differences = {
            "nll": paired_difference(before, after, evaluation_set.targets[with_target], seed),
            "bits_per_byte": paired_difference(
                before / bits, after / bits, evaluation_set.sizes[with_target], seed
            ),
        }
        contents = (evaluation_set.targets - evaluation_set.ends)[with_target]
        if contents.sum():
            differences["content_nll"] = paired_difference(
                (base.nll - base.end_nll)[with_target],
                (tuned.nll - tuned.end_nll)[with_target],
                contents,
                seed,
            )
    base_scores = average_per_row(evaluation_set, base, rows)
    for name, tuned_scores in average_per_row(evaluation_set, tuned, rows).items():
        differences[name] = paired_difference(base_scores[name], tuned_scores, seed=seed)
    return {name: build_change(difference) for name, difference in differences.items()}


def build_change(difference: dict) -> ScoreChange:
    """Return what `paired_difference` computed as a change."""
    low, high = difference["interval"]
    return ScoreChange(mean=difference["mean"], interval=(low, high))


def summarize_flips(
    evaluation_set: EvaluationSet, base: ModelResult, tuned: ModelResult, *, rows: Sequence[int]
) -> dict[str, int]:
    """Count the rows whose loss improved, tied or regressed."""
    with_target = select_with_target(evaluation_set, rows)
    targets = evaluation_set.targets[with_target]
    return count_flips(base.nll[with_target] / targets, tuned.nll[with_target] / targets, TIE_THRESHOLD)


def compute_forgetting(
    text: str, windows: Sequence[Example], *, base: np.ndarray, tuned: np.ndarray, seed: int
) -> Forgetting:
    """Compare base and tuned on plain text, with an interval over windows.

    Args:
        text: what the text is.
        windows: of the text.
        base: [windows], the base's loss of each in nats.
        tuned: [windows], the tuned model's.
        seed: of the bootstrap.
    """
    targets = count_targets(windows)
    return Forgetting(
        text=text,
        windows=len(windows),
        base=compute_token_means(base, targets),
        tuned=compute_token_means(tuned, targets),
        difference={"nll": build_change(paired_difference(base, tuned, targets, seed))},
    )


def summarize_adapters(adapters: Sequence[AdapterEvaluation]) -> dict[str, Any]:
    """Return each measure's mean and sample standard deviation over the adapters, nested as they are."""
    first = adapters[0]
    groups = {
        "by_source": [one.by_source for one in adapters],
        "by_category": [one.by_category for one in adapters],
    }
    spread: dict[str, Any] = summarize_measures([one.tuned for one in adapters])
    for group, parts in groups.items():
        spread[group] = {
            name: summarize_measures([part[name].tuned for part in parts]) for name in getattr(first, group)
        }
    forgetting = [one.forgetting.tuned for one in adapters if one.forgetting]
    return spread | {"forgetting": summarize_measures(forgetting)}


def summarize_measures(measures: Sequence[Measures]) -> dict[str, Spread]:
    """Return the mean and standard deviation of each measure; counts are left out."""
    names = [name for name, value in measures[0].items() if isinstance(value, float)]
    return {name: Spread(**mean_and_deviation([one[name] for one in measures])) for name in names}
