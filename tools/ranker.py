"""Fit the ranker's weights to the shipped FinQA training questions: `python -m tools.ranker`.

This takes about half a minute on one core and writes ranker.json. `python -m benchmarks.retrieval` measures
the ranker on held-out questions.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from loratune.data import snapshot
from loratune.data.compared_texts import normalize_text
from loratune.tasks.finqa import ranker
from loratune.tasks.finqa.facts import build_page_facts, match_facts
from loratune.tasks.finqa.ranker import compute_feature_columns, list_rankable

WEIGHTS_FILE = Path(ranker.__file__).with_name("ranker.json")
HIDDEN_SIZE = 8
WEIGHT_DECAY = 0.01  # L2, of all weights
GUESSED_GOLD_WEIGHT = 0.5  # a question whose gold facts are guessed from its program counts half
MAX_GOLD_FACTS = 4  # a guess or an annotation of more facts than this is mostly noise
MAX_ITERATIONS = 150


@dataclass(frozen=True)
class TrainingFacts:
    """The facts of all questions, one after the other."""

    feature_names: list[str]
    values: torch.Tensor  # [facts, features]
    needed: torch.Tensor  # [facts], bool
    question: torch.Tensor  # [facts], the number of each fact's question
    weight: torch.Tensor  # [questions]


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    facts = load_training_facts()
    mean, scale = facts.values.mean(0), facts.values.std(0) + 1e-6
    hidden, bias, out = fit_ranker((facts.values - mean) / scale, facts)
    # Mean and scale are folded into the weights, so that the package does not need them.
    hidden, bias = hidden / scale[:, None], bias - (mean / scale) @ hidden
    stored = {
        "hidden": {title: round_values(row) for title, row in zip(facts.feature_names, hidden, strict=True)},
        "bias": round_values(bias),
        "out": round_values(out),
    }
    lines = json.dumps(stored, indent=1).replace("\n   ", " ").replace("\n  ]", " ]")
    WEIGHTS_FILE.write_text(lines + "\n")
    print(
        f"{WEIGHTS_FILE.name}: {len(facts.weight):,} questions, {len(facts.values):,} facts, "
        f"{len(facts.feature_names)} features"
    )


def load_training_facts() -> TrainingFacts:
    held_out = {
        normalize_text(row["question"])
        for split in ("dev", "test")
        for row in snapshot.read(f"finqa_{split}")
    }
    values, needed, question, weight, titles = [], [], [], [], []
    for row in snapshot.read("finqa_train"):
        facts = build_page_facts(row["pre_text"], row["post_text"], row["table"])
        names = list_rankable(facts)
        gold = set(row["gold_inds"] or match_facts(row["program"] or "", facts)).intersection(names)
        if normalize_text(row["question"]) in held_out or not 0 < len(gold) <= MAX_GOLD_FACTS:
            continue
        columns = compute_feature_columns(row["question"], facts, names)
        titles = list(columns)
        values.append(np.column_stack(list(columns.values())))
        needed += [name in gold for name in names]
        question += [len(weight)] * len(names)
        weight.append(1.0 if row["gold_inds"] else GUESSED_GOLD_WEIGHT)
    return TrainingFacts(
        titles,
        torch.tensor(np.concatenate(values), dtype=torch.float64),
        torch.tensor(needed),
        torch.tensor(question),
        torch.tensor(weight, dtype=torch.float64),
    )


def fit_ranker(values: torch.Tensor, facts: TrainingFacts) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fit the weights: hidden [features, units], bias [units], out [units]."""
    weights = [
        (torch.randn(shape, dtype=torch.float64) / shape[0] ** 0.5).requires_grad_()
        for shape in ((values.shape[1], HIDDEN_SIZE), (HIDDEN_SIZE,), (HIDDEN_SIZE,))
    ]
    optimizer = torch.optim.LBFGS(
        weights, max_iter=MAX_ITERATIONS, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        hidden, bias, out = weights
        loss = listwise_loss(torch.tanh(values @ hidden + bias) @ out, facts)
        loss = loss + WEIGHT_DECAY * sum(weight.square().sum() for weight in weights)
        loss.backward()
        return loss

    optimizer.step(closure)
    hidden, bias, out = (weight.detach() for weight in weights)
    return hidden, bias, out


def listwise_loss(scores: torch.Tensor, facts: TrainingFacts) -> torch.Tensor:
    """Compute the weighted mean negative log-softmax of each needed fact among its page's other facts."""
    others = torch.zeros_like(facts.weight).index_add(0, facts.question, scores.exp() * ~facts.needed)
    needed, question = scores[facts.needed], facts.question[facts.needed]
    weight = facts.weight[question]
    return (torch.log1p(others[question] * torch.exp(-needed)) * weight).sum() / weight.sum()


def round_values(values: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


if __name__ == "__main__":
    main()
