"""The engine in use: requests are streamed, cancelled and answered in any order."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loratune.generation.decoding import Decoding
from loratune.generation.engine import Engine, generate
from loratune.generation.request import Answer, Request
from loratune.models import merge
from loratune.models.lora import add_lora, named_linears, without_adapter
from loratune.models.merge import merge_adapter
from support.small_models import (
    GPT2_SHAPES,
    LLAMA_SHAPES,
    build_reference,
    convert_to_decoder,
    randomise_lora,
)

SHAPES = {"gpt2": GPT2_SHAPES["cerebras-gpt"], "smollm2": LLAMA_SHAPES["smollm2"]}
END_IDS = frozenset([66, 158])  # they end an answer of each of the models
DECODINGS = [
    Decoding(max_new_tokens=9),
    Decoding(max_new_tokens=14, temperature=1.2, seed=3),
    Decoding(max_new_tokens=6, temperature=0.8, top_k=20, repetition_penalty=1.3),
    Decoding(max_new_tokens=1, temperature=1.0, top_p=0.9),
]


def build_mixed_requests() -> list[Request]:
    generator = torch.Generator().manual_seed(3)
    prompts = [
        torch.randint(1, 200, (length,), generator=generator).tolist() for length in (3, 30, 1, 12, 7, 3)
    ]
    prompts[-1] = prompts[0]  # two requests share a prompt
    return [
        Request(prompt, DECODINGS[number % len(DECODINGS)], number=number)
        for number, prompt in enumerate(prompts)
    ]


REQUESTS = build_mixed_requests()


@pytest.fixture(scope="module", params=SHAPES)
def decoder(request):
    decoder = convert_to_decoder(build_reference(SHAPES[request.param]))
    add_lora(decoder, 4, 8, dropout=0.0, targets=["all"])
    randomise_lora(decoder)
    return decoder.eval()


@pytest.fixture(scope="module")
def alone(decoder) -> list[Answer]:
    """Each request's answer from an engine of its own."""
    return [generate(decoder, [request], END_IDS)[0] for request in REQUESTS]


def finish(engine: Engine) -> dict[int, Answer]:
    answers = {}
    while engine.has_work:
        answers |= {update.id: update.answer for update in engine.step() if update.answer}
    return answers


def test_requests_end_by_eos_and_by_length(alone):
    assert {answer.ended for answer in alone} == {"eos", "length"}


def test_stream_yields_the_tokens_of_generate_step_by_step(decoder, alone):
    with merge_adapter(decoder):
        engine = Engine(decoder, END_IDS)
        for request, answer in zip(REQUESTS, alone, strict=True):
            assert list(engine.stream(request)) == answer.ids
        stream, calls = engine.stream(REQUESTS[0]), []
        advance = engine.advance
        engine.advance = lambda: calls.append(1) or advance()
        next(stream)
        assert len(calls) == 1


def test_parallel_streams_and_requests_get_their_own_tokens(decoder, alone):
    with merge_adapter(decoder):
        engine = Engine(decoder, END_IDS, max_slots=3)
        places = {engine.submit(REQUESTS[place]): place for place in (0, 1, 2)}
        streams = {place: engine.stream(REQUESTS[place]) for place in (3, 4, 5)}
        tokens = {place: [] for place in streams}
        while streams:
            for place, stream in list(streams.items()):
                try:
                    tokens[place].append(next(stream))
                except StopIteration as end:
                    assert end.value == alone[place]
                    del streams[place]
        assert tokens == {place: alone[place].ids for place in tokens}
        # What the streams' steps did for the others is not lost.
        answers = {places[number]: answer for number, answer in finish(engine).items()}
        assert answers == {place: alone[place] for place in (0, 1, 2)}


def test_closed_stream_frees_its_slot(decoder, alone):
    with merge_adapter(decoder):
        engine = Engine(decoder, END_IDS, max_slots=1)
        stream = engine.stream(REQUESTS[1])
        next(stream)
        assert len(engine.running) == len(engine.cache.lengths) == 1
        stream.close()
        assert not engine.running and not engine.cache.lengths and not engine.streams
        assert list(engine.stream(REQUESTS[0])) == alone[0].ids


@pytest.mark.parametrize("after", [0, 1, 3])
def test_cancelled_request_frees_its_slot_and_yields_nothing_more(decoder, alone, after):
    with merge_adapter(decoder):
        engine = Engine(decoder, END_IDS, max_slots=2)
        numbers = [engine.submit(request) for request in REQUESTS]
        for _ in range(after):
            engine.step()
        cancelled = numbers[1]
        engine.cancel(cancelled)
        engine.cancel(cancelled)
        engine.cancel(1000)
        assert len(engine.cache.lengths) == len(engine.running)
        assert cancelled not in {answer.id for answer in [*engine.running, *engine.waiting]}
        answers = finish(engine)
        assert cancelled not in answers
        assert all(answer == alone[numbers.index(number)] for number, answer in answers.items())
        assert numbers[4] in answers


def test_stream_of_a_cancelled_request_raises(decoder):
    with merge_adapter(decoder):
        engine = Engine(decoder, END_IDS)
        stream = engine.stream(REQUESTS[1])
        next(stream)
        (answer,) = engine.running
        engine.cancel(answer.id)
        with pytest.raises(RuntimeError, match="cancelled"):
            list(stream)


def test_engine_reused_for_a_chat_equals_fresh_engines(decoder):
    prompt = REQUESTS[0].prompt
    with merge_adapter(decoder):
        engine = Engine(decoder, END_IDS)
        for number in range(4):
            request = Request(prompt, replace(DECODINGS[number % 2], seed=number))
            answer = list(engine.stream(request))
            (fresh,) = generate(decoder, [request], END_IDS)
            assert answer == fresh.ids
            prompt = [*prompt, *answer, 5, 6]


def test_engine_is_usable_after_an_interrupted_step(decoder, alone, monkeypatch):
    with merge_adapter(decoder):
        engine = Engine(decoder, END_IDS, max_slots=2)
        for request in REQUESTS:
            engine.submit(request)
        engine.step()

        def interrupt(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(decoder, "logits", interrupt)
            with pytest.raises(KeyboardInterrupt):
                engine.step()
        assert not engine.has_work
        assert list(engine.stream(REQUESTS[1])) == alone[1].ids


def test_session_merges_the_adapter_once(decoder, monkeypatch):
    merged, compute = [], merge.compute_merged_weight
    monkeypatch.setattr(
        merge, "compute_merged_weight", lambda weight, lora: merged.append(lora) or compute(weight, lora)
    )
    weights = [linear.weight for _, linear in named_linears(decoder)]
    with merge_adapter(decoder):
        engine = Engine(decoder, END_IDS)
        for request in REQUESTS[:3]:
            list(engine.stream(request))
            generate(decoder, [request], END_IDS)
        assert len(merged) == len(weights)
        with pytest.raises(RuntimeError, match="the adapter is merged"), without_adapter(decoder):
            pass
    assert all(
        linear.weight is weight and linear.adapter_enabled and linear.packed is None
        for (_, linear), weight in zip(named_linears(decoder), weights, strict=True)
    )


def test_answers_are_the_same_without_merging(decoder, alone):
    engine = Engine(decoder, END_IDS)
    assert [list(engine.stream(request)) for request in REQUESTS] == [answer.ids for answer in alone]


def test_requests_that_do_not_fit_are_refused(decoder):
    engine = Engine(decoder, END_IDS, capacity=20)
    engine.submit(Request([1] * 11, Decoding(max_new_tokens=9)))
    with pytest.raises(ValueError, match="do not fit into this engine's capacity of 20 tokens"):
        engine.submit(Request([1] * 12, Decoding(max_new_tokens=9)))
    with pytest.raises(ValueError, match="there must be 1 to"):
        next(engine.stream(Request([])))
    assert len(finish(engine)) == 1


@pytest.mark.parametrize(
    "setting",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"repetition_penalty": 0.0},
        {"seed": -1},
    ],
)
def test_invalid_decoding_settings_are_refused(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}=.* is out of range"):
        Decoding(**setting)


ORDERS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, len(REQUESTS) - 1)),
        st.tuples(st.just("step"), st.integers(1, 4)),
        st.tuples(st.just("cancel"), st.integers(0, 5)),
    ),
    max_size=25,
)


@settings(max_examples=25, deadline=None)
@given(ORDERS, st.integers(1, 4))
def test_each_request_gets_its_own_answer_in_any_order(decoder, alone, orders, slots):
    engine = Engine(decoder, END_IDS, max_slots=slots)
    places, cancelled = {}, set()
    tokens: dict[int, list[int]] = {}
    answers: dict[int, Answer] = {}

    def step() -> None:
        for update in engine.step():
            assert update.id not in answers
            tokens.setdefault(update.id, []).extend(update.ids)
            if update.answer:
                answers[update.id] = update.answer

    for order, value in orders:
        if order == "submit":
            places[engine.submit(REQUESTS[value])] = value
        elif order == "cancel" and value in places and value not in answers:
            engine.cancel(value)
            cancelled.add(value)
        elif order == "step":
            for _ in range(value):
                step()
        assert len(engine.running) == len(engine.cache.lengths) <= slots
    while engine.has_work:
        step()
    assert answers == {number: alone[place] for number, place in places.items() if number not in cancelled}
    assert all(tokens[number] == answer.ids for number, answer in answers.items())
    assert not engine.cache.lengths and not engine.streams
