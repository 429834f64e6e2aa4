"""Measure one model on the held-out examples: the likelihood of the reference responses, and its answers."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from loratune.data.example import Example, Record
from loratune.evaluation.likelihood import count_targets, find_ends, response_losses
from loratune.evaluation.result_cache import ResultCache
from loratune.evaluation.scoring import ScoredAnswer, score_answer
from loratune.generation.constrained import Constraint
from loratune.generation.decoding import Decoding
from loratune.generation.engine import MAX_SLOTS
from loratune.generation.progress import generate_with_progress
from loratune.generation.request import Answer, Request, build_requests
from loratune.models.decoder import Decoder
from loratune.models.tokenizer import Tokenizer
from loratune.system.cache import compute_cache_key
from loratune.system.messages import progress, say
from loratune.tasks.registry import task_of

Constraints = Sequence[Constraint | None] | None


@dataclass(frozen=True)
class AnswerSettings:
    """How each model answers."""

    decoding: Decoding
    samples: int = 1  # answers to each prompt, with consecutive seeds
    batch_size: int = MAX_SLOTS  # answers generated at the same time; the results do not depend on it


@dataclass(frozen=True)
class EvaluationSet:
    """What every model is measured on."""

    records: Sequence[Record]
    answered: Sequence[int]  # indices of the records that are answered
    targets: np.ndarray  # [records]: tokens whose likelihood counts; 0 for a record without a response
    sizes: np.ndarray  # [records]: bytes of these tokens
    ends: np.ndarray  # [records]: 1 where the last of these tokens ends the response, else 0
    constraints: Constraints = None  # one for each answered record; None leaves all answers unconstrained
    # Ids in the official split of each task whose records are all answered.
    split_ids: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelResult:
    """What one model does on the evaluation set."""

    nll: np.ndarray  # [records]: negative log-likelihood of the whole response in nats
    end_nll: np.ndarray  # [records]: of the token that ends it; 0 where it was cut
    answers: Sequence[dict[int, ScoredAnswer]]  # by the index of the record; one dict for each sample


def build_evaluation_set(
    records: Sequence[Record],
    examples: Sequence[Example],
    answered: Sequence[int],
    *,
    tokenizer: Tokenizer,
    constraints: Constraints = None,
    split_ids: Mapping[str, int] | None = None,
) -> EvaluationSet:
    """Build the evaluation set of `records`; `examples` are their tokens."""
    # Counted in the tokens that are scored, because a response may have been cut.
    sizes = np.array([len(tokenizer.decode(example.response).encode()) for example in examples])
    return EvaluationSet(
        records,
        answered,
        targets=count_targets(examples),
        sizes=sizes,
        ends=find_ends(examples, {tokenizer.eos_id, tokenizer.text_eos_id}),
        constraints=constraints,
        split_ids=split_ids or {},
    )


def measure_model(
    name: str,
    decoder: Decoder,
    tokenizer: Tokenizer,
    *,
    evaluation_set: EvaluationSet,
    examples: Sequence[Example],
    settings: AnswerSettings,
    result_cache: ResultCache,
) -> ModelResult:
    """Measure the model in the decoder's current state, adapter on or off.

    Args:
        name: of the model, in messages.
        decoder: the model.
        tokenizer: the model's.
        evaluation_set: what it is measured on.
        examples: the tokenised records; their prompts may use another template than the evaluation set's.
        settings: how it answers; each sample equals a run with its own seed.
        result_cache: the results known of exactly this model.
    """
    losses = compute_losses(f"{name} loss", decoder, examples, result_cache=result_cache)
    answers = generate_answers(
        f"{name} answers",
        decoder,
        tokenizer,
        evaluation_set=evaluation_set,
        examples=examples,
        settings=settings,
        result_cache=result_cache,
    )
    return ModelResult(losses[:, 0], losses[:, 1] * evaluation_set.ends, answers)


def compute_losses(
    title: str, decoder: Decoder, examples: Sequence[Example], *, result_cache: ResultCache
) -> np.ndarray:
    """Compute `response_losses` of the examples that are not in the cache, and show the progress.

    Returns:
        [examples, 2], in nats; 0 for an example without a target.
    """
    with_target = [number for number, example in enumerate(examples) if example.response]
    if not with_target:
        return np.zeros((len(examples), 2))
    losses = np.zeros((len(examples), 2))
    losses[with_target] = load_or_compute_losses(
        title, decoder, [examples[number] for number in with_target], result_cache=result_cache
    )
    return losses


def load_or_compute_losses(
    title: str, decoder: Decoder, examples: Sequence[Example], *, result_cache: ResultCache
) -> list[list[float]]:
    keys = [
        compute_cache_key(of="loss", prompt=example.prompt, response=example.response) for example in examples
    ]
    new = [number for number, key in enumerate(keys) if key not in result_cache.known]
    with progress(title, len(new)) as advance:

        def on_rows(numbers: Sequence[int], losses: np.ndarray) -> None:
            for number, value in zip(numbers, losses.tolist(), strict=True):
                result_cache.note(keys[new[number]], value)
            advance(len(numbers))

        response_losses(decoder, [examples[number] for number in new], on_rows)
    report_cached_results(title, len(examples) - len(new), len(examples))
    return [result_cache.known[key] for key in keys]


def generate_answers(
    title: str,
    decoder: Decoder,
    tokenizer: Tokenizer,
    *,
    evaluation_set: EvaluationSet,
    examples: Sequence[Example],
    settings: AnswerSettings,
    result_cache: ResultCache,
) -> list[dict[int, ScoredAnswer]]:
    """Generate the answers that are not in the cache, and score all.

    Returns:
        For each sample, the scored answers by record index.
    """
    if not evaluation_set.answered:
        return [{}]
    prompts = [examples[number].prompt for number in evaluation_set.answered]
    requests = build_requests(
        prompts, settings.decoding, constraints=evaluation_set.constraints, samples=settings.samples
    )
    keys = make_answer_keys(requests, tokenizer.end_ids, evaluation_set)
    answers = {
        place: Answer(**result_cache.known[key])
        for place, key in enumerate(keys)
        if key in result_cache.known
    }
    new = [place for place in range(len(requests)) if place not in answers]
    generated = generate_with_progress(
        title,
        decoder,
        [requests[place] for place in new],
        end_ids=tokenizer.end_ids,
        batch_size=settings.batch_size,
        on_answer=lambda place, answer: result_cache.note(keys[new[place]], asdict(answer)),
    )
    report_cached_results(title, len(answers), len(keys))
    answers |= zip(new, generated, strict=True)
    in_order = iter([answers[place] for place in range(len(requests))])
    return [
        {
            number: score_answer(next(in_order), tokenizer, evaluation_set.records[number])
            for number in evaluation_set.answered
        }
        for _ in range(settings.samples)
    ]


def make_answer_keys(
    requests: Sequence[Request], end_ids: Collection[int], evaluation_set: EvaluationSet
) -> list[str]:
    """Compute each answer's cache key from everything that it depends on besides the model.

    A greedy answer depends neither on the seed nor on the request's number.
    """
    answered = [evaluation_set.records[number] for number in evaluation_set.answered]
    tables = [
        task_of(record).get_constraint_content(record) if evaluation_set.constraints else None
        for record in answered
    ]
    keys = []
    for request in requests:
        decoding = request.decoding
        is_sampled = decoding.temperature > 0
        key = compute_cache_key(
            of="answer",
            prompt=request.prompt,
            ends=sorted(end_ids),
            decoding=asdict(replace(decoding, seed=0)),
            constraint=[evaluation_set.constraints is not None, tables[request.number]],
            draw=[request.number, decoding.seed] if is_sampled else None,
        )
        keys.append(key)
    return keys


def report_cached_results(title: str, known: int, total: int) -> None:
    if known:
        say(f"{title}: {known:,} of {total:,} known from an earlier evaluation")
