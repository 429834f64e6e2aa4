"""Guesses equal those of a search, and answers with guesses equal those without."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratune.generation import request
from loratune.generation.decoding import Decoding
from loratune.generation.prompt_lookup import NGRAM_SIZE, NgramIndex
from loratune.generation.request import Answer, Request, RunningAnswer
from loratune.generation.sampling import make_generator
from support.answering import answer_all
from support.small_models import LLAMA_SHAPES, build_reference, convert_to_decoder

NO_END = frozenset()
FEW_TOKENS = st.lists(st.integers(0, 2), max_size=40)  # of few kinds, so that clues come again


def guess_by_search(tokens: list[int], count: int) -> list[int]:
    """What `Text.guess` says it gives, found by comparing every place."""
    for place in reversed(range(NGRAM_SIZE, len(tokens))):
        if tokens[place - NGRAM_SIZE : place] == tokens[-NGRAM_SIZE:]:
            round_ = tokens[place:]
            return (round_ * (count + 1))[:count]
    return []


@given(FEW_TOKENS, FEW_TOKENS, st.integers(0, 20))
def test_guess_is_what_followed_the_last_occurrence(prompt, answer, count):
    text = NgramIndex(prompt)
    assert text.guess(count) == guess_by_search(prompt, count)
    for number, token in enumerate(answer, 1):
        text.append(token)
        assert text.guess(count) == guess_by_search(prompt + answer[:number], count)


def test_repetition_is_guessed_to_continue():
    assert NgramIndex([9, 1, 2, 3, 1, 2, 3, 1, 2]).guess(7) == [3, 1, 2, 3, 1, 2, 3]
    assert NgramIndex([7, 7, 7, 7]).guess(5) == [7] * 5


def writing(room: int = 100) -> RunningAnswer:
    """Its text says that 4 5 6 7 follow."""
    return RunningAnswer(0, Request([1, 2, 3, 4, 5, 6, 7, 1, 2]), room)


def build_looking_ahead(room: int, cheap: int) -> RunningAnswer:
    answer = writing(room)
    assert answer.add(iter([3]), NO_END) is None
    answer.look_ahead(cheap)
    return answer


@pytest.mark.parametrize(
    ("choices", "ids", "ended"),
    [
        ([9, 5, 6, 7], [3, 9], None),  # the first guess is wrong: what was chosen after it counts for nothing
        ([4, 5, 9, 7], [3, 4, 5, 9], None),
        ([4, 5, 6, 8], [3, 4, 5, 6, 8], None),  # all are right, and one more token is known
        ([4, 0, 6, 7], [3, 4], "eos"),
        ([4, 5, 6, 0], [3, 4, 5, 6], "eos"),
    ],
)
def test_choices_are_kept_up_to_the_first_wrong_guess(choices, ids, ended):
    answer = build_looking_ahead(100, cheap=3)
    assert answer.guess == [4, 5, 6]
    asked = iter(choices)
    finished = answer.add(asked, end_ids={0})
    assert answer.ids == ids and answer.text.tokens == answer.prompt + ids
    assert finished == (Answer(ids, ended) if ended else None)
    assert answer.tokens_added == len(ids) - 1 + (ended == "eos")
    assert list(asked) == choices[answer.tokens_added :]  # no more were drawn


def test_guessed_eos_ends_the_answer():
    answer = build_looking_ahead(100, cheap=3)
    assert answer.add(iter([4, 5, 6, 7]), end_ids={5}) == Answer([3, 4], "eos")


@pytest.mark.parametrize("room", [2, 3, 4, 20])
def test_guesses_respect_the_token_limit(room):
    answer = build_looking_ahead(room, cheap=3)
    assert answer.guess == [4, 5, 6][: room - 2]
    finished = answer.add(iter([4, 5, 6, 7][: room - 1]), NO_END)
    assert finished == (Answer([3, 4, 5, 6, 7][:room], "length") if room <= 5 else None)


def test_guess_count_follows_the_last_success():
    answer = build_looking_ahead(100, cheap=0)
    assert answer.guess == [4]
    answer.add(iter([4, 5]), NO_END)
    answer.look_ahead(0)
    assert answer.guess == [6, 7]
    answer.add(iter([9]), NO_END)
    answer.look_ahead(0)
    assert answer.guess == []  # 5 9 was never there


@pytest.fixture(scope="module")
def decoder():
    return convert_to_decoder(build_reference(LLAMA_SHAPES["tinyllama"]))


@pytest.fixture(scope="module")
def prompts(decoder):
    """Of many lengths. As small random models do, the answers come to go round, and some prompts are cut from
    such a text.
    """
    seeds = [[number, number + 1, 3 * number % 200] for number in range(1, 9)]
    written = answer_all(decoder, seeds, NO_END, Decoding(max_new_tokens=60))
    return [
        seed + answer.ids[: 7 * number]
        for number, (seed, answer) in enumerate(zip(seeds, written, strict=True))
    ]


@pytest.fixture
def outcomes(monkeypatch):
    """(guessed tokens, gained tokens) of each answer in each call."""
    seen, add = [], RunningAnswer.add

    def watched(answer, *arguments):
        finished = add(answer, *arguments)
        seen.append((len(answer.guess), answer.tokens_added))
        return finished

    monkeypatch.setattr(RunningAnswer, "add", watched)
    return seen


@pytest.fixture
def generators(monkeypatch):
    generators_by_number = {}

    def watched(seed, number):
        generators_by_number[number] = make_generator(seed, number)
        return generators_by_number[number]

    monkeypatch.setattr(request, "make_generator", watched)
    return generators_by_number


def plain(monkeypatch, *arguments, **options):
    with monkeypatch.context() as patch:
        patch.setattr(request, "MAX_GUESSES", 0)
        return answer_all(*arguments, **options)


SAMPLINGS = [
    {},
    {"temperature": 0.02},
    {"temperature": 0.03, "top_k": 5},
    {"temperature": 0.03, "top_p": 0.9},
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_guesses_change_neither_tokens_nor_random_draws(
    decoder, prompts, sampling, batch_size, monkeypatch, outcomes, generators
):
    decoding = Decoding(max_new_tokens=40, seed=4, **sampling)
    expected = plain(monkeypatch, decoder, prompts, NO_END, decoding, batch_size=batch_size)
    assert {gain for _, gain in outcomes} == {1} and {guesses for guesses, _ in outcomes} == {0}
    outcomes.clear()
    assert answer_all(decoder, prompts, NO_END, decoding, batch_size=batch_size) == expected
    assert sum(gain for _, gain in outcomes) == 40 * len(prompts)
    assert any(gain > 3 for _, gain in outcomes)  # guesses were right
    assert any(gain <= guesses for guesses, gain in outcomes)  # and wrong
    for number, generator in generators.items():
        draws = make_generator(4, number)
        draws.random(40 if sampling else 0)
        assert generator.random() == draws.random()


@pytest.mark.parametrize("sampling", SAMPLINGS[:2])
def test_eos_and_length_end_answers_within_guesses(decoder, prompts, sampling, monkeypatch, outcomes):
    free = answer_all(decoder, prompts, NO_END, Decoding(max_new_tokens=40, **sampling))
    ends_amid_guesses = 0
    for end_id in sorted({token for answer in free for token in answer.ids[2:6]}):
        for room in (1, 2, 7, 40):
            decoding = Decoding(max_new_tokens=room, **sampling)
            expected = plain(monkeypatch, decoder, prompts, {end_id}, decoding, batch_size=3)
            outcomes.clear()
            assert answer_all(decoder, prompts, {end_id}, decoding, batch_size=3) == expected
            ends_amid_guesses += sum(1 < gain <= guesses for guesses, gain in outcomes) if room == 40 else 0
    assert ends_amid_guesses


@pytest.mark.parametrize(("batch_size", "most"), [(1, 15), (4, 3)])
def test_fewer_running_answers_allow_more_guesses(decoder, batch_size, most, outcomes):
    """A call of few tokens is filled: what was gained the last time does not matter then."""
    same = [[1, 2, 3, 50, 60] * 4] * batch_size
    answer_all(decoder, same, NO_END, Decoding(max_new_tokens=40), batch_size=batch_size)
    answer = outcomes[::batch_size]
    after_one = {guesses for (guesses, _), (_, gain) in zip(answer[1:], answer, strict=False) if gain == 1}
    assert after_one and max(after_one) == most
