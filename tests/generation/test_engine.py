"""Batched equals single, cached equals uncached, and both equal `transformers`."""

import pytest
import torch
from transformers import GPT2Config, RepetitionPenaltyLogitsProcessor

from loratune.generation import cache as caching
from loratune.generation.cache import KVCache, choose_slot_count
from loratune.generation.decoding import Decoding
from loratune.models.load import set_precision
from loratune.models.lora import add_lora, named_linears, without_adapter
from support.answering import answer_all
from support.small_models import (
    GPT2_SHAPES,
    LLAMA_SHAPES,
    build_reference,
    compute_logits,
    convert_to_decoder,
    randomise_lora,
)

SHAPES = {
    "gpt2": GPT2_SHAPES["cerebras-gpt"],
    "smollm2": LLAMA_SHAPES["smollm2"],
    "untied": LLAMA_SHAPES["tinyllama"],
}
NO_END = frozenset()


def prompts_of(lengths, vocabulary=200):
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(1, vocabulary, (length,), generator=generator).tolist() for length in lengths]


PROMPTS = prompts_of([3, 41, 1, 17, 8, 29, 5, 12, 64])


@pytest.fixture(params=SHAPES)
def model(request):
    return build_reference(SHAPES[request.param])


def generate_with_transformers(model, prompt, count, end_ids=NO_END, **options):
    """What `transformers` writes, greedily and without a batch."""
    ids = torch.tensor([prompt])
    options |= {"eos_token_id": sorted(end_ids)} if end_ids else {}
    model.generation_config.eos_token_id = None
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        **options,
    )
    return out[0, len(prompt) :].tolist()


def test_greedy_answers_equal_transformers(model):
    answers = answer_all(
        convert_to_decoder(model), PROMPTS, NO_END, Decoding(max_new_tokens=20), batch_size=4
    )
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert answer.ids == generate_with_transformers(model, prompt, 20)
        assert answer.ended == "length"


def test_eos_ends_an_answer_as_in_transformers(model):
    decoder = convert_to_decoder(model)
    free = answer_all(decoder, PROMPTS, NO_END, Decoding(max_new_tokens=30))
    end_ids = {free[4].ids[7], free[2].ids[9]}  # tokens that at least two answers are known to reach
    answers = answer_all(decoder, PROMPTS, end_ids, Decoding(max_new_tokens=30), batch_size=3)
    for number in (2, 4):
        first = min(place for place, token in enumerate(free[number].ids) if token in end_ids)
        assert answers[number].ended == "eos" and answers[number].ids == free[number].ids[:first]
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        theirs = generate_with_transformers(model, prompt, 30, end_ids)
        assert (answer.ended == "eos") == (theirs[-1] in end_ids)
        assert answer.ids == (theirs[:-1] if answer.ended == "eos" else theirs)


@pytest.mark.parametrize("penalty", [1.05, 1.3, 4.0])
def test_repetition_penalty_equals_transformers(model, penalty):
    decoder = convert_to_decoder(model)
    answers = answer_all(
        decoder, PROMPTS, NO_END, Decoding(max_new_tokens=30, repetition_penalty=penalty), batch_size=4
    )
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ignore = {
            "logits_processor": [RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=len(prompt))]
        }
        assert answer.ids == generate_with_transformers(model, prompt, 30, **ignore)


SAMPLINGS = [
    {},
    {"temperature": 1.3},
    {"temperature": 0.9, "top_k": 7},
    {"temperature": 1.5, "top_p": 0.8},
    {"repetition_penalty": 1.4},
    {"temperature": 0.9, "repetition_penalty": 1.4},
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_answer_does_not_depend_on_the_batch(model, sampling):
    decoder = convert_to_decoder(model)
    # Some token that ends answers early, so that rows leave the batch and others enter it at different times.
    end_ids = {
        answer_all(decoder, PROMPTS[:1], NO_END, Decoding(max_new_tokens=8, seed=3, **sampling))[0].ids[5]
    }
    single = answer_all(
        decoder, PROMPTS, end_ids, Decoding(max_new_tokens=25, seed=3, **sampling), batch_size=1
    )
    assert single[0].ended == "eos"
    for batch_size in (2, 5, 16):
        assert single == answer_all(
            decoder,
            PROMPTS,
            end_ids,
            Decoding(max_new_tokens=25, seed=3, **sampling),
            batch_size=batch_size,
        )


def test_merged_generation_equals_uncached_and_restores_weights(model):
    decoder = convert_to_decoder(model)
    base = answer_all(decoder, PROMPTS, NO_END, Decoding(max_new_tokens=10))
    add_lora(decoder, 4, 8, dropout=0.0, targets=["all"])
    randomise_lora(decoder)
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    answers = answer_all(decoder, PROMPTS, NO_END, Decoding(max_new_tokens=10), batch_size=4)
    assert answers != base
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        with torch.inference_mode():
            likeliest = compute_logits(decoder, torch.tensor(prompt + answer.ids)).argmax(
                -1
            )  # the adapter apart
        assert answer.ids == likeliest[len(prompt) - 1 : -1].tolist()
    with without_adapter(decoder):
        assert answer_all(decoder, PROMPTS, NO_END, Decoding(max_new_tokens=10), batch_size=4) == base

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer_all(decoder, PROMPTS, NO_END, Decoding(), on_step=interrupt)
    assert all(tensor.equal(before[name]) for name, tensor in decoder.state_dict().items())
    assert all(linear.adapter_enabled for _, linear in named_linears(decoder))


def test_sampling_depends_on_seed_and_prompt_number(model):
    decoder, same_prompt = convert_to_decoder(model), [PROMPTS[1]] * 2
    first = answer_all(decoder, same_prompt, NO_END, Decoding(max_new_tokens=20, temperature=1, seed=1))
    assert first == answer_all(
        decoder, same_prompt, NO_END, Decoding(max_new_tokens=20, temperature=1, seed=1)
    )
    assert first != answer_all(
        decoder, same_prompt, NO_END, Decoding(max_new_tokens=20, temperature=1, seed=2)
    )
    assert first[0] != first[1]


@pytest.mark.parametrize(("batch_size", "most_reads"), [(1, 5), (4, 2), (64, 1)])
def test_samples_equal_one_run_per_seed(model, monkeypatch, batch_size, most_reads):
    """And a prompt is not read again while another answer to it is running."""
    decoder, read, attend = convert_to_decoder(model), [], KVCache.prepare_attention
    monkeypatch.setattr(
        KVCache,
        "prepare_attention",
        lambda self, more, prompts: read.extend(prompts) or attend(self, more, prompts),
    )
    settings = {"max_new_tokens": 12, "temperature": 1.1}
    alone = [
        answer_all(decoder, PROMPTS, NO_END, Decoding(seed=3 + sample, **settings), batch_size=batch_size)
        for sample in range(5)
    ]
    read.clear()
    together = answer_all(
        decoder, PROMPTS, NO_END, Decoding(seed=3, **settings), samples=5, batch_size=batch_size
    )
    assert together == [answer for one in alone for answer in one]
    assert len(set(map(str, alone))) == 5
    assert len(PROMPTS) <= len(read) <= most_reads * len(PROMPTS)


@torch.inference_mode()
@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-2)])
def test_cached_logits_equal_uncached_logits(model, precision, tolerance):
    """Every call's logits, while answers of different lengths enter, go on with right and wrong guesses, and
    leave.
    """
    decoder, texts = set_precision(convert_to_decoder(model), precision), prompts_of([40, 55, 48])
    cache, at = KVCache(decoder, slots=3, capacity=60), [10, 20, 1]
    cache.keys.fill_(torch.nan), cache.values.fill_(torch.nan)  # what is free is never read
    begun: list[int] = []  # the texts in the slots

    def call(new, right=(1, 1, 1), wrong=(0, 0, 0)):
        """Feed `right` tokens of each text that has begun, then `wrong` others, and the first tokens of new
        texts.
        """
        fed, positions, rows = [], [], []
        for text in begun:
            true = texts[text][at[text] : at[text] + right[text]]
            rows += [(len(fed) + number, text, at[text] + number + 1) for number in range(len(true))]
            positions += range(at[text], at[text] + len(true) + wrong[text])
            fed += true + [7] * wrong[text]
            at[text] += len(true)
        for text in new:
            positions += range(at[text])
            fed += texts[text][: at[text]]
            rows.append((len(fed) - 1, text, at[text]))
        more = [right[text] + wrong[text] for text in begun]
        hidden = decoder(
            torch.tensor(fed),
            torch.tensor(positions),
            cache.prepare_attention(more, [at[text] for text in new]),
        )
        begun.extend(new)
        for slot, text in enumerate(begun):
            cache.truncate(slot, at[text])
        for row, text, length in rows:
            uncached = compute_logits(decoder, torch.tensor(texts[text][:length]))[-1]
            assert (decoder.logits(hidden[row]) - uncached).abs().max() < tolerance

    call([0])
    call([1])
    for _ in range(5):
        call([])
    call([], wrong=(4, 0, 0))
    call([2], right=(3, 1, 1), wrong=(0, 2, 0))
    call([], right=(2, 4, 3), wrong=(1, 0, 5))
    cache.free_slot(0)
    begun[0] = begun.pop()
    for number in range(10):
        call([], right=(0, 1, 2), wrong=(0, number % 3, 1))
    assert cache.lengths == [at[2], at[1]]


@pytest.mark.parametrize("config", [GPT2Config(), LLAMA_SHAPES["smollm2"]], ids=["gpt2-124m", "smollm2"])
@torch.inference_mode()
def test_cached_logits_equal_uncached_up_to_the_last_position(config):
    decoder = convert_to_decoder(build_reference(config))
    end = decoder.spec.max_positions
    ids, positions = torch.tensor(prompts_of([end])[0]), torch.arange(end)
    cache, begun = KVCache(decoder, slots=1, capacity=end), end - 20
    hidden = [decoder(ids[:begun], positions[:begun], cache.prepare_attention([], [begun]))[-1:]]
    hidden += [
        decoder(ids[place : place + 1], positions[place : place + 1], cache.prepare_attention([1], []))
        for place in range(begun, end)
    ]
    uncached = compute_logits(decoder, ids)[begun - 1 :]
    assert (decoder.logits(torch.cat(hidden)) - uncached).abs().max() < 1e-4


def test_answer_ends_at_the_last_position():
    decoder = convert_to_decoder(build_reference(SHAPES["smollm2"]))
    long, short = prompts_of([decoder.spec.max_positions - 4, 9])
    answers = answer_all(decoder, [long, short], NO_END, Decoding(max_new_tokens=10))
    assert [len(answer.ids) for answer in answers] == [4, 10]
    assert answers[0].ended == "length"
    for unusable in ([], [1] * decoder.spec.max_positions):
        with pytest.raises(ValueError, match="there must be 1 to 511"):
            answer_all(decoder, [unusable], NO_END, Decoding())


def test_kv_cache_takes_at_most_a_quarter_of_free_memory(model, monkeypatch):
    decoder = convert_to_decoder(model)
    cache = KVCache(decoder, slots=1, capacity=50)
    slot = cache.keys.nbytes + cache.values.nbytes
    for free, slots in ((4 * slot * 10, 10), (4 * slot * 10 - 1, 9), (4 * slot * 99, 64), (0, 1)):
        monkeypatch.setattr(caching, "available_memory", lambda free=free: free)
        assert choose_slot_count(decoder, 64, 50) == slots
    assert answer_all(decoder, PROMPTS, NO_END, Decoding(max_new_tokens=6)) == [
        answer_all(decoder, [prompt], NO_END, Decoding(max_new_tokens=6))[0] for prompt in PROMPTS
    ]


def test_on_step_counts_all_tokens_and_answers(model):
    seen = []
    answers = answer_all(
        convert_to_decoder(model),
        PROMPTS,
        NO_END,
        Decoding(max_new_tokens=6),
        batch_size=4,
        on_step=lambda tokens, finished: seen.append((tokens, len(finished))),
    )
    assert [sum(column) for column in zip(*seen, strict=True)] == [
        sum(len(answer.ids) for answer in answers),
        len(PROMPTS),
    ]


def test_no_requests_give_no_answers(model):
    assert answer_all(convert_to_decoder(model), [], NO_END, Decoding()) == []


def test_real_smollm2(smollm2):
    """Real weights, where near-ties are possible: batched, single and `transformers` write the same."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2.resolved.folder, dtype=torch.float32).eval()
    questions = [
        "Name three colours.",
        "What is a bond?",
        "Write a sentence about a long journey by train through the snow.",
    ]
    prompts = [smollm2.tokenizer.encode(f"### Instruction:\n{text}\n\n### Response:\n") for text in questions]
    end_ids = smollm2.tokenizer.end_ids
    batched = answer_all(smollm2.decoder, prompts, end_ids, Decoding(max_new_tokens=16), batch_size=3)
    assert batched == answer_all(smollm2.decoder, prompts, end_ids, Decoding(max_new_tokens=16), batch_size=1)
    for prompt, answer in zip(prompts, batched, strict=True):
        theirs = generate_with_transformers(model, prompt, 16, end_ids)
        assert answer.ids == (theirs[:-1] if answer.ended == "eos" else theirs)
