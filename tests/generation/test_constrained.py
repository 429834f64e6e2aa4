"""Constrained answers equal those of a model without the forbidden tokens."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from loratune.generation import request
from loratune.generation.constrained import Constraint, TokenBytes
from loratune.generation.decoding import Decoding
from loratune.generation.request import RunningAnswer
from loratune.generation.sampling import choose_constrained, choose_tokens, make_generator
from support.answering import answer_all
from support.small_models import LLAMA_SHAPES, build_reference, compute_logits, convert_to_decoder

END = 0
LETTERS = b"abcdefgh"


class Words:
    """All texts of one or more of these words and a comma between them, no longer than `longest` words."""

    start = (0, b"")

    def __init__(self, words: list[bytes], longest: int):
        self.words, self.longest = words, longest

    def after(self, state, piece):
        count, word = state
        for letter in (piece[place : place + 1] for place in range(len(piece))):
            if letter == b"," and word in self.words and count + 1 < self.longest:
                count, word = count + 1, b""
            elif any(other.startswith(word + letter) for other in self.words):
                word += letter
            else:
                return None
        return count, word

    def is_complete(self, state):
        return state[1] in self.words


def pieces() -> dict[int, bytes]:
    """1 to 210: single letters, pairs and triples, each several times, some with a comma in them, some empty;
    0 is the end.
    """
    generator = np.random.default_rng(0)
    tokens = {token: LETTERS[token - 1 : token] for token in range(1, 9)} | {9: b",", 10: b""}
    for token in range(11, 211):
        tokens[token] = bytes(generator.choice(list(LETTERS + b","), generator.integers(1, 4)).tolist())
    return tokens


PIECES = pieces()
VOCABULARY = TokenBytes(PIECES, END)
LANGUAGES = [Words([b"abc", b"fade", b"a", b"hab"], 9), Words([b"gg", b"hedge"], 4), Words([b"bad"], 1)]
CONSTRAINTS = [Constraint(language, VOCABULARY) for language in LANGUAGES]


def all_allowed(constraint: Constraint, text: bytes) -> list[int]:
    """By trying every token."""
    language = constraint.language
    found = [
        token
        for token, piece in PIECES.items()
        if piece and language.after(language.start, text + piece) is not None
    ]
    return sorted(found + [END] * language.is_complete(language.after(language.start, text)))


@pytest.mark.parametrize("text", [b"", b"a", b"ab", b"abc", b"abc,", b"abc,fad", b"hab,hab"])
def test_allowed_tokens_equal_brute_force(text):
    constraint = CONSTRAINTS[0]
    state = constraint.language.after(constraint.language.start, text)
    assert constraint.list_allowed(state) == all_allowed(constraint, text)
    assert constraint.list_allowed(state) == [
        token for token in range(300) if constraint.is_allowed(state, token)
    ]


@pytest.fixture(scope="module")
def decoder():
    return convert_to_decoder(build_reference(LLAMA_SHAPES["smollm2"]))


PROMPTS = [[number, number + 1, 3 * number % 200, *range(20, 20 + number)] for number in range(1, 10)]
FOR_PROMPTS = [*CONSTRAINTS, None] * 2 + [CONSTRAINTS[0]]


def one_by_one(decoder, prompt: list[int], constraint: Constraint) -> list[int]:
    """Greedy, uncached: the likeliest allowed token, over and over."""
    ids: list[int] = []
    while True:
        text = b"".join(PIECES[token] for token in ids)
        with torch.inference_mode():
            last = compute_logits(decoder, torch.tensor(prompt + ids))[-1]
        allowed = all_allowed(constraint, text)
        token = max(allowed, key=lambda token: float(last[token]))
        if token == END:
            return ids
        ids.append(token)


def test_constrained_greedy_takes_the_likeliest_allowed_token(decoder):
    answers = answer_all(decoder, PROMPTS, {END}, Decoding(max_new_tokens=40), constraints=FOR_PROMPTS)
    free = answer_all(decoder, PROMPTS, {END}, Decoding(max_new_tokens=40))
    for prompt, answer, constraint, unconstrained in zip(PROMPTS, answers, FOR_PROMPTS, free, strict=True):
        if constraint is None:
            assert answer == unconstrained
        else:
            assert answer.ids == one_by_one(decoder, prompt, constraint) and answer.ended == "eos"


SAMPLINGS = [{}, {"temperature": 1.0}, {"temperature": 0.5, "top_k": 3}, {"temperature": 1.5, "top_p": 0.7}]
GUESSABLE = ({}, {"temperature": 0.5, "top_k": 3})  # the others vary too much to be guessed right


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_constrained_answers_are_valid_and_independent_of_batch_and_guesses(decoder, sampling, monkeypatch):
    guessed_right = []
    add = RunningAnswer.add

    def watched(answer, *arguments):
        finished = add(answer, *arguments)
        guessed_right.append(answer.request.constraint is not None and answer.tokens_added > 1)
        return finished

    monkeypatch.setattr(RunningAnswer, "add", watched)
    # The prompt repeats what may be written, so that there is something to guess.
    prompts = [[*prompt, *([1, 2, 3, 9] * 5)] for prompt in PROMPTS]
    decoding = Decoding(max_new_tokens=60, seed=2, **sampling)
    answers = answer_all(decoder, prompts, {END}, decoding, constraints=FOR_PROMPTS)
    for batch_size in (1, 4):
        again = answer_all(decoder, prompts, {END}, decoding, constraints=FOR_PROMPTS, batch_size=batch_size)
        assert again == answers
    if sampling in GUESSABLE:
        assert any(guessed_right)
    monkeypatch.setattr(request, "MAX_GUESSES", 0)
    assert answer_all(decoder, prompts, {END}, decoding, constraints=FOR_PROMPTS) == answers
    for answer, constraint in zip(answers, FOR_PROMPTS, strict=True):
        if constraint:
            assert answer.ended == "eos"
            assert constraint.language.is_complete(constraint.read(answer.ids))


def choose(rows: torch.Tensor, decoding: Decoding, count: int) -> Iterator[int]:
    return choose_constrained(rows, CONSTRAINTS[0], [], decoding=decoding, generator=make_generator(0, count))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_constrained_sampling_renormalises_over_allowed_tokens(sampling):
    decoding, row = Decoding(**sampling), torch.randn(211, generator=torch.Generator().manual_seed(1))
    masked = torch.full_like(row, -torch.inf)
    allowed = CONSTRAINTS[0].list_allowed(CONSTRAINTS[0].language.start)
    masked[allowed] = row[allowed]
    for count in range(200):
        assert next(choose(row[None], decoding, count)) == next(
            choose_tokens(masked[None], decoding, make_generator(0, count))
        )


def test_each_constrained_choice_draws_once():
    rows = torch.randn(5, 211, generator=torch.Generator().manual_seed(3))
    generator, same = make_generator(0, 0), make_generator(0, 0)
    constraint, decoding, written = CONSTRAINTS[0], Decoding(temperature=1.0), []
    choices = choose_constrained(rows, constraint, [], decoding=decoding, generator=generator)
    for number in range(3):
        token = next(choices)
        if token == END:
            break
        assert token in all_allowed(constraint, b"".join(PIECES[token] for token in written))
        assert token == next(
            choose_constrained(
                rows[number : number + 1], constraint, written, decoding=decoding, generator=same
            )
        )
        written.append(token)
    assert generator.random() == same.random()
