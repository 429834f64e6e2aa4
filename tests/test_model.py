"""A tuned model in Python: answers, streams, the base, several adapters, and a merged folder."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from loratune.errors import UserError
from loratune.model import load_tuned_model
from loratune.models.adapter import load_adapter
from support.small_models import GPT2_SHAPES, compute_logits, save_model
from support.tuned_models import save_tuned

QUESTIONS = ["Name a colour.", "Why is the sky blue?", "Count to three."]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        save_tuned(place)
        save_tuned(place, name="second", seed=2, targets="attention")
    return place


@pytest.fixture(autouse=True)
def inside(place, monkeypatch):
    monkeypatch.chdir(place)


@pytest.fixture(scope="module")
def model(place):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return load_tuned_model([place / "adapter", place / "second"], threads=1)


SAMPLED = {"temperature": 1.0, "max_new_tokens": 24}


def test_a_list_gives_a_list_of_the_same_answers(model):
    together = model.generate(QUESTIONS, max_new_tokens=12)
    assert together == [model.generate(question, max_new_tokens=12) for question in QUESTIONS]
    assert model.generate([], max_new_tokens=12) == []


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000), question=st.sampled_from(QUESTIONS))
def test_a_stream_joined_is_the_whole_answer(model, seed, question):
    pieces = list(model.stream(question, seed=seed, **SAMPLED))
    assert "".join(pieces) == model.generate(question, seed=seed, **SAMPLED)
    assert all(pieces)


def test_a_stream_gives_whole_characters(model, monkeypatch):
    """The small model's tokens are bytes: a letter of three bytes comes as one piece."""
    text = "a€ b  "
    ids = model.tokenizer.encode(text)
    assert len(ids) > len(text)

    def stream(self, request):
        yield from ids

    monkeypatch.setattr("loratune.model.Engine.stream", stream)
    assert list(model.stream("?")) == ["a", "€", " b"]


def test_the_base_answers_without_the_adapter(model):
    tuned = model.generate(QUESTIONS, **SAMPLED)
    with model.base():
        base = model.generate(QUESTIONS, **SAMPLED)
    assert base != tuned == model.generate(QUESTIONS, **SAMPLED)


def test_each_adapter_answers_as_if_it_were_alone(model, place):
    alone = load_tuned_model([place / "second"], threads=1)
    first = model.generate(QUESTIONS, **SAMPLED)
    with model.using("second"):
        assert model.generate(QUESTIONS, **SAMPLED) == alone.generate(QUESTIONS, **SAMPLED) != first
        assert model.adapter.folder.name == "second"
    assert model.generate(QUESTIONS, **SAMPLED) == first
    with pytest.raises(UserError, match="not loaded; loaded are"), model.using("third"):
        pass


def test_a_session_changes_no_answer_and_no_adapter_is_exchanged_in_it(model, place):
    expected = model.generate(QUESTIONS, max_new_tokens=12)
    with model.session():
        assert [model.generate(question, max_new_tokens=12) for question in QUESTIONS] == expected
        for exchange in (model.base, lambda: model.using("second")):
            with pytest.raises(RuntimeError, match="merged into the weights"), exchange():
                pass
        with pytest.raises(RuntimeError, match="merged into the weights"):
            load_adapter(model.decoder, place / "second")
    with model.base(), model.session():
        base = model.generate(QUESTIONS, max_new_tokens=12)
    assert base != expected


def test_a_prompt_that_is_too_long_is_refused(model):
    with pytest.raises(UserError, match="and this model takes 511; shorten it"):
        model.generate("word " * 600)
    with pytest.raises(TypeError, match="temperatur"):
        model.generate("?", temperatur=1)
    with pytest.raises(ValueError, match="top_p"):
        model.generate("?", top_p=2)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.1)])
@torch.no_grad()
def test_the_merged_folder_gives_transformers_the_tuned_logits(model, tmp_path, precision, tolerance):
    assert model.merge(tmp_path / "merged", precision=precision) == tmp_path / "merged"
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    ids = torch.tensor(tokenizer(QUESTIONS[1])["input_ids"])
    tuned = compute_logits(model.decoder, ids)
    assert (merged(ids[None]).logits[0] - tuned).abs().max() < tolerance
    with model.base():
        assert (compute_logits(model.decoder, ids) - tuned).abs().max() > 0.01
    assert (
        next(AutoModelForCausalLM.from_pretrained(tmp_path / "merged").parameters()).dtype
        == {
            "fp32": torch.float32,
            "bf16": torch.bfloat16,
        }[precision]
    )


@torch.no_grad()
def test_gpt2_is_merged_in_its_own_layout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "base", GPT2_SHAPES["cerebras-gpt"])
    save_tuned(tmp_path)
    model = load_tuned_model([tmp_path / "adapter"], threads=1)
    model.merge("merged")
    merged = AutoModelForCausalLM.from_pretrained("merged")
    ids = torch.arange(3, 90)
    assert (merged(ids[None]).logits[0] - compute_logits(model.decoder, ids)).abs().max() < 1e-4


def test_merging_refuses_what_cannot_be_written(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="this is a file"):
        model.merge(tmp_path / "file")
    with pytest.raises(UserError, match="choose fp32 or bf16"):
        model.merge(tmp_path / "merged", precision="int8")
    assert not (tmp_path / "merged").exists()
