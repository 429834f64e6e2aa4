"""Models compared on the same rows: what `evaluation.json` holds for all rows, for each source and for each
category.

`models` has up to three: `base`, `base_bare` (the base with a bare prompt) and `tuned`.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import numpy as np

from loratune.data.example import Example, Record
from loratune.evaluation.likelihood import compute_likelihood_means, compute_token_means, count_targets
from loratune.evaluation.metrics import METRICS
from loratune.evaluation.runner import EvaluationSet, ModelResult
from loratune.evaluation.scoring import ScoredAnswer
from loratune.evaluation.statistics import count_flips, mean_and_deviation, paired_difference
from loratune.tasks.registry import TASKS, task_of

TIE_THRESHOLD = 0.01  # nats a token: a row's loss that changes by less is tied
DIFFERENCES = {"base": "difference", "base_bare": "difference_bare"}  # tuned minus this one


def compare_models(evaluation_set: EvaluationSet, models: dict[str, ModelResult], seed: int) -> dict:
    """All rows together, `by_source`, and `by_category` of those that have one."""
    everything = range(len(evaluation_set.records))
    return {
        **aggregate_rows(evaluation_set, models, everything, seed),
        "by_source": aggregate_by(evaluation_set, models, lambda record: record.source, seed),
        "by_category": aggregate_by(evaluation_set, models, get_category, seed),
    }


def aggregate_by(
    evaluation_set: EvaluationSet,
    models: dict[str, ModelResult],
    name_of: Callable[[Record], str | None],
    seed: int,
) -> dict[str, dict]:
    rows: dict[str, list[int]] = {}
    for number, record in enumerate(evaluation_set.records):
        if name := name_of(record):
            rows.setdefault(name, []).append(number)
    return {
        name: aggregate_rows(evaluation_set, models, numbers, seed) for name, numbers in sorted(rows.items())
    }


def get_category(record: Record) -> str | None:
    """What kind of task a row is, as Dolly's rows say; None where it says nothing."""
    category = record.meta.get("category")
    return category if isinstance(category, str) and category.strip() else None


def aggregate_rows(
    evaluation_set: EvaluationSet, models: dict[str, ModelResult], rows: Sequence[int], seed: int
) -> dict:
    """Each model on some of the rows, tuned against the others with intervals, and how many rows improved."""
    tuned, others = models["tuned"], {name: change for name, change in DIFFERENCES.items() if name in models}
    answered = [number for number in rows if number in tuned.answers[0]]
    split_ids = sum(evaluation_set.split_ids[task] for task in count_missing_ids(evaluation_set, rows))
    without_target = len(rows) - len(select_with_target(evaluation_set, rows))
    return {
        "rows": len(rows),
        **({"without_target": without_target} if without_target else {}),
        "answered_rows": len(answered),
        **({"split_ids": split_ids} if split_ids else {}),
        **{name: summarize_model(evaluation_set, model, rows) for name, model in models.items()},
        **(
            {"over_samples": compute_deviations(evaluation_set, models, rows)}
            if answered and len(tuned.answers) > 1
            else {}
        ),
        **{
            change: compute_difference(evaluation_set, models[name], tuned, rows, seed)
            for name, change in others.items()
        },
        **summarize_flips(evaluation_set, models["base"], tuned, rows),
    }


def summarize_model(evaluation_set: EvaluationSet, model: ModelResult, rows: Sequence[int]) -> dict:
    """Of the losses one global sum over one global count; of each score its mean over the rows it applies to
    and the samples.
    """
    known = select_with_target(evaluation_set, rows)
    losses = (
        compute_likelihood_means(model.nll[known], evaluation_set.targets[known], evaluation_set.sizes[known])
        if known
        else {}
    )
    scores = {name: fmean(values) for name, values in average_per_sample(evaluation_set, model, rows).items()}
    answered = [evaluation_set.records[number] for number in rows if number in model.answers[0]]
    return {**losses, **scores, **describe_facts(answered)}


def select_with_target(evaluation_set: EvaluationSet, rows: Sequence[int]) -> list[int]:
    """Those of the rows that have a wanted response; losses are over these."""
    return [number for number in rows if evaluation_set.targets[number] > 0]


def compute_deviations(
    evaluation_set: EvaluationSet, models: dict[str, ModelResult], rows: Sequence[int]
) -> dict[str, dict]:
    """Of each model's scores, how much they differ from sample to sample."""
    return {
        name: {
            score: mean_and_deviation(values)
            for score, values in average_per_sample(evaluation_set, model, rows).items()
        }
        for name, model in models.items()
    }


def average_per_sample(
    evaluation_set: EvaluationSet, model: ModelResult, rows: Sequence[int]
) -> dict[str, list[float]]:
    """Each score over these rows, as one number for each sample."""
    found: dict[str, list[float]] = {}
    for answers in model.answers:
        of_sample = {
            name: fmean(values.values())
            for name, values in collect_scores(evaluation_set, answers, rows).items()
        }
        if written := [answers[number].answer.ids for number in rows if number in answers]:
            for name, metric in METRICS.items():
                if metric.score_all:
                    of_sample[name] = metric.score_all(written)
        for name, value in of_sample.items():
            found.setdefault(name, []).append(value)
    return found


def average_per_row(
    evaluation_set: EvaluationSet, model: ModelResult, rows: Sequence[int]
) -> dict[str, list[float]]:
    """Each score of the rows that it applies to, as one number for each: its mean over the samples."""
    samples = [collect_scores(evaluation_set, answers, rows) for answers in model.answers]
    return {
        name: [fmean(sample[name][row] for sample in samples) for row in values]
        for name, values in samples[0].items()
    }


def collect_scores(
    evaluation_set: EvaluationSet, answers: Mapping[int, ScoredAnswer], rows: Sequence[int]
) -> dict[str, dict[int, float]]:
    """For each score, in their usual order, the rows that it applies to and its value; what is missing of a
    part has 0.
    """
    found: dict[str, dict[int, float]] = {}
    for number in rows:
        if number in answers:
            for name, value in answers[number].scores.items():
                found.setdefault(name, {})[number] = value
    for name, missing in count_missing_ids(evaluation_set, rows).items():
        wrong = {-number: 0.0 for number in range(1, missing + 1)}
        found |= {f"{score}_all": found[score] | wrong for score in TASKS[name].scores_over_split}
    return found


def count_missing_ids(evaluation_set: EvaluationSet, rows: Sequence[int]) -> dict[str, int]:
    """Return how many ids of its official split have no row, for each task whose rows are all in `rows`."""
    present = Counter(task_of(evaluation_set.records[number]) for number in rows)
    everywhere = Counter(map(task_of, evaluation_set.records))
    missing = {}
    for name, ids in evaluation_set.split_ids.items():
        task = TASKS[name]
        if 0 < present[task] == everywhere[task]:
            missing[name] = ids - present[task]
    return missing


def describe_facts(records: Sequence[Record]) -> dict[str, str]:
    """Return as `facts` how the facts that rows show were chosen; nothing where no row says."""
    facts = {task_of(record).describe_facts(record) for record in records} - {""}
    return {"facts": " and ".join(sorted(facts))} if facts else {}


def compute_difference(
    evaluation_set: EvaluationSet, base: ModelResult, tuned: ModelResult, rows: Sequence[int], seed: int
) -> dict[str, dict]:
    """Without perplexity, which nll tells, and distinct_2: answers drawn twice would repeat themselves, so no
    bootstrap.
    """
    changes = {}
    if known := select_with_target(evaluation_set, rows):
        before, after = base.nll[known], tuned.nll[known]
        bits = math.log(2)
        changes = {
            "nll": paired_difference(before, after, evaluation_set.targets[known], seed),
            "bits_per_byte": paired_difference(
                before / bits, after / bits, evaluation_set.sizes[known], seed
            ),
        }
    theirs = average_per_row(evaluation_set, base, rows)
    for name, ours in average_per_row(evaluation_set, tuned, rows).items():
        changes[name] = paired_difference(theirs[name], ours, seed=seed)
    return changes


def summarize_flips(
    evaluation_set: EvaluationSet, base: ModelResult, tuned: ModelResult, rows: Sequence[int]
) -> dict:
    known = select_with_target(evaluation_set, rows)
    targets = evaluation_set.targets[known]
    return {
        **count_flips(base.nll[known] / targets, tuned.nll[known] / targets, TIE_THRESHOLD),
        "tie_threshold": TIE_THRESHOLD,
    }


def compute_forgetting(
    windows: Sequence[Example], base: np.ndarray, tuned: np.ndarray, seed: int
) -> dict[str, dict]:
    """Plain text, from each window's loss in nats: `base`, `tuned` and the `difference` with an interval over
    windows.
    """
    targets = count_targets(windows)
    return {
        "base": compute_token_means(base, targets),
        "tuned": compute_token_means(tuned, targets),
        "difference": {"nll": paired_difference(base, tuned, targets, seed)},
    }


def summarize_adapters(parts: Sequence[dict]) -> dict:
    """Mean and sample standard deviation of each measure over several adapters, in the form of their
    `parts`.
    """
    tuned = [part["tuned"] for part in parts]
    measures = [name for name, value in tuned[0].items() if isinstance(value, float)]
    groups = [name for name in ("by_source", "by_category") if name in parts[0]]
    return {
        **{name: mean_and_deviation([one[name] for one in tuned]) for name in measures},
        **{
            group: {
                name: summarize_adapters([part[group][name] for part in parts]) for name in parts[0][group]
            }
            for group in groups
        },
    }
