"""One model on the held-out rows: how likely it finds the wanted responses, and what it answers."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from loratune.config.evaluate import EvaluateConfig
from loratune.config.shared import DecodingConfig
from loratune.data.example import Example, Record
from loratune.evaluation.likelihood import count_targets, response_nll
from loratune.evaluation.result_cache import ResultCache
from loratune.evaluation.scoring import ScoredAnswer, score_answer
from loratune.generation.both import generate_with_progress
from loratune.generation.constrained import Constraint
from loratune.generation.engine import Answer
from loratune.system.cache import compute_cache_key
from loratune.system.messages import progress, say
from loratune.tasks.registry import task_of

Constraints = Sequence[Constraint | None] | None


@dataclass(frozen=True)
class EvaluationSet:
    """What every model is measured on."""

    records: Sequence[Record]
    answered: Sequence[int]  # numbers of the rows that are answered
    targets: np.ndarray  # [rows]: tokens whose likelihood counts; 0 for a row that has no wanted response
    sizes: np.ndarray  # [rows]: bytes of these
    constraints: Constraints = None  # what each answer is held to
    # Ids in the official split of each task whose rows are all answered.
    split_ids: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelResult:
    """The same rows as one model sees them."""

    nll: np.ndarray  # [rows]: of the whole response, in nats
    answers: Sequence[dict[int, ScoredAnswer]]  # by the number of the row; one for each seed of the sampling


def build_evaluation_set(
    records: Sequence[Record],
    examples: Sequence[Example],
    answered: Sequence[int],
    tokenizer,
    constraints: Constraints = None,
    split_ids: Mapping[str, int] | None = None,
) -> EvaluationSet:
    """`rows` are the tokens of `records`; `constraints` are those of the answered ones."""
    # What is scored, not what the record holds: a response may have been cut.
    sizes = np.array([len(tokenizer.decode(row.response).encode()) for row in examples])
    return EvaluationSet(records, answered, count_targets(examples), sizes, constraints, split_ids or {})


def measure_model(
    name: str,
    decoder,
    tokenizer,
    evaluation_set: EvaluationSet,
    examples: Sequence[Example],
    settings: EvaluateConfig,
    result_cache: ResultCache,
) -> ModelResult:
    """The model as the decoder is now, adapter on or off; `rows` may have prompts of another template.

    Each sample is what a run with its own seed would give: the first has `settings.seed`, the second one
    more. `notebook` is the model's own.
    """
    nll = compute_losses(f"{name} loss", decoder, examples, result_cache)
    return ModelResult(
        nll,
        generate_answers(
            f"{name} answers", decoder, tokenizer, evaluation_set, examples, settings, result_cache
        ),
    )


def compute_losses(title: str, decoder, examples: Sequence[Example], result_cache: ResultCache) -> np.ndarray:
    """As `response_nll`, with a progress bar, of the rows whose losses are not known yet; 0 for a row without
    a target.
    """
    with_target = [number for number, row in enumerate(examples) if row.response]
    nll = np.zeros(len(examples))
    nll[with_target] = load_or_compute_losses(
        title, decoder, [examples[number] for number in with_target], result_cache
    )
    return nll


def load_or_compute_losses(
    title: str, decoder, examples: Sequence[Example], result_cache: ResultCache
) -> list[float]:
    keys = [compute_cache_key(of="loss", prompt=row.prompt, response=row.response) for row in examples]
    new = [number for number, key in enumerate(keys) if key not in result_cache.known]
    with progress(title, len(new)) as advance:

        def on_rows(numbers: Sequence[int], nll: np.ndarray) -> None:
            for number, value in zip(numbers, nll.tolist(), strict=True):
                result_cache.note(keys[new[number]], value)
            advance(len(numbers))

        response_nll(decoder, [examples[number] for number in new], on_rows)
    report_cached_results(title, len(examples) - len(new), len(examples))
    return [result_cache.known[key] for key in keys]


def generate_answers(
    title: str,
    decoder,
    tokenizer,
    evaluation_set: EvaluationSet,
    examples: Sequence[Example],
    settings: EvaluateConfig,
    result_cache: ResultCache,
) -> list[dict[int, ScoredAnswer]]:
    """For each sample, the answers by the number of the row."""
    if not evaluation_set.answered:
        return [{}]
    prompts = [examples[number].prompt for number in evaluation_set.answered]
    keys = make_answer_keys(prompts, tokenizer.end_ids, evaluation_set, settings)
    known = {
        place: Answer(**result_cache.known[key])
        for place, key in enumerate(keys)
        if key in result_cache.known
    }
    written = generate_with_progress(
        *(
            decoder,
            prompts,
            tokenizer.end_ids,
            settings,
            title,
            evaluation_set.constraints,
            settings.samples,
            known,
        ),
        on_answer=lambda place, answer: result_cache.note(keys[place], asdict(answer)),
    )
    report_cached_results(title, len(known), len(keys))
    answers = iter(written)
    return [
        {
            number: score_answer(next(answers), tokenizer, evaluation_set.records[number])
            for number in evaluation_set.answered
        }
        for _ in range(settings.samples)
    ]


def make_answer_keys(
    prompts: Sequence[list[int]],
    end_ids: Collection[int],
    evaluation_set: EvaluationSet,
    settings: EvaluateConfig,
) -> list[str]:
    """Of each answer's place, all that it depends on besides the model; of the dice only where they are
    thrown.
    """
    how = settings.model_dump(include=DecodingConfig.model_fields.keys() - {"batch_size", "seed"})
    answered = [evaluation_set.records[number] for number in evaluation_set.answered]
    tables = [
        task_of(record).get_constraint_content(record) if evaluation_set.constraints else None
        for record in answered
    ]
    return [
        compute_cache_key(
            of="answer",
            prompt=prompt,
            ends=sorted(end_ids),
            decoding=how,
            constraint=[settings.constrain, table],
            draw=settings.temperature and [number, seed],
        )
        for seed in range(settings.seed, settings.seed + settings.samples)
        for number, (prompt, table) in enumerate(zip(prompts, tables, strict=True))
    ]


def report_cached_results(title: str, known: int, wanted: int) -> None:
    if known:
        say(f"{title}: {known:,} of {wanted:,} known from an earlier evaluation")
