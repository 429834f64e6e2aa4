"""Define the metrics of an evaluation: each is a function and an entry in METRICS, in the order of tables."""

from loratune.data.example import Record
from loratune.evaluation.text_metrics import distinct_2, rep_4, rouge_l
from loratune.generation.request import Answer
from loratune.tasks.base import Metric
from loratune.tasks.registry import TASKS


def score_rouge_l(answer: Answer, text: str, record: Record) -> float | None:
    return rouge_l(text, record.output) if record.has_target else None


def is_stopped_at_eos(answer: Answer, text: str, record: Record) -> float:
    return float(answer.ended == "eos")


def is_cut_at_limit(answer: Answer, text: str, record: Record) -> float:
    return float(answer.ended == "length")


def count_answer_tokens(answer: Answer, text: str, record: Record) -> float:
    return float(len(answer.ids))


def score_rep_4(answer: Answer, text: str, record: Record) -> float:
    return rep_4(answer.ids)


# The keys are the names in evaluation.json; tables keep this order.
METRICS: dict[str, Metric] = {
    "nll": Metric("loss, nats a token ↓", 1, 3, stands_out=True, phrase="the loss"),
    "content_nll": Metric("loss without the end ↓", 1, 3),
    "perplexity": Metric("perplexity ↓", 1, 2, stands_out=True),
    "bits_per_byte": Metric("bits a byte ↓", 1, 3, stands_out=True),
    "rouge_l": Metric("ROUGE-L, % ↑", 100, 1, score=score_rouge_l, stands_out=True, phrase="ROUGE-L"),
    **{name: metric for task in TASKS.values() for name, metric in task.metrics.items()},
    "eos_rate": Metric("stopped at EOS, %", 100, 1, score=is_stopped_at_eos, stands_out=True),
    "cap_rate": Metric(score=is_cut_at_limit),  # without a title, because it is 1 - eos_rate
    "mean_tokens": Metric("tokens in an answer", 1, 1, score=count_answer_tokens),
    "rep_4": Metric("repeated 4-grams, % ↓", 100, 1, score=score_rep_4, stands_out=True, phrase="repetition"),
    "distinct_2": Metric("distinct 2-grams, %", 100, 1, score_all=distinct_2),
}


def list_shown_metrics() -> dict[str, Metric]:
    """Return the metrics that tables show, by name."""
    return {name: metric for name, metric in METRICS.items() if metric.title}
