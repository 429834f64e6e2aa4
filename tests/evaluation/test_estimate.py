"""What is estimated from a piece, against the whole: time is counted in tokens that the decoder computes."""

import pytest

from loratune.data.example import Example
from loratune.evaluation import estimate
from loratune.evaluation.likelihood import response_nll
from loratune.evaluation.runner import AnswerSettings
from loratune.generation import request
from loratune.generation.decoding import Decoding
from support.answering import answer_all
from support.small_models import LLAMA_SHAPES, build_reference, convert_to_decoder


@pytest.fixture
def decoder(monkeypatch):
    """A decoder whose `computed` grows by the tokens that it is given, which is also what the clock shows."""
    decoder = convert_to_decoder(build_reference(LLAMA_SHAPES["smollm2"]))
    decoder.computed = 0
    forward = decoder.forward

    def counting(ids, *arguments, **options):
        decoder.computed += len(ids)
        return forward(ids, *arguments, **options)

    monkeypatch.setattr(decoder, "forward", counting)
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: float(decoder.computed))
    return decoder


def spent(decoder, work) -> int:
    before = decoder.computed
    work()
    return decoder.computed - before


@pytest.mark.parametrize("count", [1, 5, 300])
def test_reading(decoder, count):
    rows = [Example([1] * (3 + number % 7), [2] * (1 + number % 5), "", "") for number in range(count)]
    whole = spent(decoder, lambda: response_nll(decoder, rows))
    estimated = estimate.estimate_reading_seconds(decoder, rows)
    assert estimated == pytest.approx(whole)


@pytest.mark.parametrize(("count", "batch"), [(1, 64), (6, 64), (9, 3)])
def test_answers_that_become_as_long_as_they_may(decoder, monkeypatch, count, batch):
    monkeypatch.setattr(request, "MAX_GUESSES", 0)
    prompts = [[1 + number] * (4 + number) for number in range(count)]
    decoding = Decoding(max_new_tokens=12)
    whole = spent(
        decoder, lambda: answer_all(decoder, prompts, estimate.NO_END_IDS, decoding, batch_size=batch)
    )
    settings = AnswerSettings(decoding, batch_size=batch)
    assert estimate.estimate_answering_seconds(decoder, prompts, settings) == pytest.approx(whole)
    assert estimate.estimate_answering_seconds(decoder, [], settings) == 0


@pytest.mark.parametrize("batch", [64, 9])
def test_a_prompt_is_read_once_for_all_its_samples(decoder, monkeypatch, batch):
    monkeypatch.setattr(request, "MAX_GUESSES", 0)
    prompts = [[1 + number] * (40 + number) for number in range(6)]
    decoding = Decoding(max_new_tokens=20, temperature=1)
    whole = spent(
        decoder,
        lambda: answer_all(decoder, prompts, estimate.NO_END_IDS, decoding, samples=3, batch_size=batch),
    )
    settings = AnswerSettings(decoding, samples=3, batch_size=batch)
    estimated = estimate.estimate_answering_seconds(decoder, prompts, settings)
    assert estimated == pytest.approx(
        whole, rel=0.05
    )  # a sample that joins is fed its prompt's last token again


def test_only_a_piece_is_tried(decoder):
    rows = [Example([1] * 20, [2] * 11, "", "") for _ in range(400)]
    prompts = [row.prompt for row in rows]
    assert (
        spent(decoder, lambda: estimate.estimate_reading_seconds(decoder, rows)) < 1.2 * estimate.TIMED_TOKENS
    )
    assert (
        spent(
            decoder, lambda: estimate.estimate_answering_seconds(decoder, prompts, AnswerSettings(Decoding()))
        )
        < 4 * estimate.TIMED_TOKENS
    )
