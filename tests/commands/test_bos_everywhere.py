"""On a base whose tokenizer puts BOS in front of texts, every command's prompts are those of `transformers`'
own tokenizer.

An adapter that was trained before loratune did so keeps its prompts without.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from loratune.api import compare
from loratune.cli.main import main
from loratune.commands import ask
from loratune.evaluation import forgetting
from loratune.generation.request import Answer
from loratune.models import tokenizer as module
from loratune.models.tokenizer import Tokenizer
from loratune.system.atomic import write_json
from loratune.system.read import read_json
from support.evaluating import PROSE, ROWS, evaluate, measured, write_rows, written
from support.small_models import save_model
from support.training_runs import ROWS as TRAINED
from support.training_runs import TRAIN, are_same_tensors, load_adapter_tensors
from support.tuned_models import save_tuned

TOLD = "Each prompt begins with the BOS token <|begin|>"
CLOSE = 1e-5  # to a random model BOS makes little difference
SIX_STEPS = ["--steps", "6", "--run", "one", "--validations", "1", "--learning-rate", "0.01"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with such a base, data and held-out rows, and an adapter whose loratune.json says nothing of
    BOS.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORATUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(forgetting, "BUILT_IN_PROSE", PROSE)
    save_model(tmp_path / "base", seed=4, begins="<|begin|>", ends="<|end|>")
    save_tuned(tmp_path)
    write_rows(tmp_path, ROWS)
    for name, rows in (("train", TRAINED[4:]), ("val", TRAINED[:4])):
        (tmp_path / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def say_bos(place, bos) -> None:
    path = place / "adapter" / "loratune.json"
    facts = {name: value for name, value in read_json(path).items() if name != "bos"}
    write_json(path, facts if bos is None else {**facts, "bos": bos})


def expected(text: str, bos: bool) -> list[int]:
    """The ids of a prompt: those of `transformers`, without the end that its tokenizer appends."""
    ids = AutoTokenizer.from_pretrained("base")(text)["input_ids"]
    assert ids[0] == 257 and ids[-1] == 0
    return ids[:-1] if bos else ids[1:-1]


def prompt_of(row: dict, bare: bool = False) -> str:
    if bare:
        return f"{row['instruction']}\n\n{row['input']}\n" if row["input"] else f"{row['instruction']}\n"
    input = f"### Input:\n{row['input']}\n\n" if row["input"] else ""
    return f"### Instruction:\n{row['instruction']}\n\n{input}### Response:\n"


def response_of(row: dict) -> list[int]:
    return [*expected(row["output"], bos=False), 0]


@torch.no_grad()
def nll(model, prompt: list[int], response: list[int]) -> float:
    logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(response), reduction="sum").item()


@pytest.mark.parametrize("bos", [True, False])
def test_the_base_is_measured_with_bos_if_the_adapter_was_trained_with_it(place, capsys, bos):
    say_bos(place, bos or None)
    result = measured(place, "--generate", "0")
    out = " ".join(capsys.readouterr().out.split())
    assert (TOLD in out) == bos and ("Prompts begin without a BOS token, although" in out) != bos
    model = AutoModelForCausalLM.from_pretrained("base")
    responses = [response_of(row) for row in ROWS]
    tokens = sum(map(len, responses))
    for part, bare in (("base", False), ("base_bare", True)):
        prompts = [expected(prompt_of(row, bare), bos) for row in ROWS]
        total = sum(nll(model, prompt, response) for prompt, response in zip(prompts, responses, strict=True))
        assert result[part]["nll"] == pytest.approx(total / tokens, rel=CLOSE)
    windows = [expected(text, bos) for text in PROSE.read()]
    total = sum(nll(model, window[:1], window[1:]) for window in windows)
    targets = sum(len(window) - 1 for window in windows)
    assert result["forgetting"]["base"]["target_tokens"] == targets
    assert result["forgetting"]["base"]["nll"] == pytest.approx(total / targets, rel=CLOSE)


def prompts_of_compare(monkeypatch) -> list[list[int]]:
    asked = []

    def answers(tuned, prompts, settings):
        asked.extend(prompts)
        return [Answer([5], "eos")] * len(prompts), [Answer([5], "eos")] * len(prompts)

    monkeypatch.setattr(compare, "generate_base_and_tuned", answers)
    write_json(Path("test.json"), ["Name a colour.", "What is <|begin|>?"])
    assert main(["compare", "--adapter", "adapter", "--model", "base", "--threads", "1"]) == 0
    return asked


def prompt_of_ask(monkeypatch) -> list[int]:
    asked = []

    def generate(decoder, requests, end_ids):
        asked.extend(request.prompt for request in requests)
        return [Answer([5], "eos")]

    monkeypatch.setattr(ask, "generate", generate)
    page = {"pre_text": ["net sales rose in 2010 ."], "post_text": [], "table": [["a", "2010"], ["b", "3"]]}
    write_json(Path("page.json"), page)
    assert (
        main(
            [
                "ask",
                "what is b?",
                "--page",
                "page.json",
                "--adapter",
                "adapter",
                "--model",
                "base",
                "--threads",
                "1",
            ]
        )
        == 0
    )
    return asked[0]


@pytest.mark.parametrize(
    ("said", "bos"), [(True, True), (False, False), (None, False), ("another tool's", True)]
)
def test_questions_are_asked_as_the_adapter_was_trained(place, monkeypatch, said, bos):
    if said == "another tool's":
        (place / "adapter" / "loratune.json").unlink()
    else:
        say_bos(place, said)
    first, second = prompts_of_compare(monkeypatch)
    assert first == expected("### Instruction:\nName a colour.\n\n### Response:\n", bos)
    assert second.count(257) == bos and second[-1] != 0  # a name in the question is no BOS
    prompt = prompt_of_ask(monkeypatch)
    assert prompt == expected(Tokenizer.load(place / "base").decode(prompt), bos)


def test_preview_shows_it_and_counts_it(place, capsys):
    options = ["preview", "--model", "base", "--data", "data", "--rows", "2", "--max-tokens", "80", "--json"]
    assert main(options) == 0
    for row in json.loads(capsys.readouterr().out)["rows"]:
        assert row["ids"][0] == 257 and row["mask"][0] == 0 and len(row["ids"]) <= 80
    assert main([*options[:-1], "--rows", "1"]) == 0
    assert "<|begin|>###" in capsys.readouterr().out


def test_an_adapter_is_trained_with_it_and_says_so(place, capsys):
    assert main([*TRAIN, *SIX_STEPS, "--out", "new"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert TOLD in out
    assert read_json(place / "new" / "loratune.json")["bos"] is True
    assert read_json(place / "runs" / "one" / "facts.json")["bos"] is True
    assert "the BOS token" in (place / "new" / "README.md").read_text()
    # The first validation is the base's, on prompts with BOS.
    model = AutoModelForCausalLM.from_pretrained("base")
    pairs = [(expected(prompt_of(row), bos=True), response_of(row)) for row in TRAINED[:4]]
    total = sum(nll(model, *pair) for pair in pairs) / sum(len(response) for _, response in pairs)
    assert read_json(place / "runs" / "one" / "summary.json")["base_val_nll"] == pytest.approx(
        total, rel=CLOSE
    )
    assert main(["train", "--run", "one", "--resume"]) == 0


def test_a_base_without_it_is_trained_as_ever(place, capsys):
    save_model(place / "base")
    assert main([*TRAIN, *SIX_STEPS, "--out", "new"]) == 0
    assert "BOS" not in capsys.readouterr().out + (place / "new" / "README.md").read_text()
    assert read_json(place / "new" / "loratune.json")["bos"] is False


def test_a_run_that_was_begun_without_it_goes_on_without(place, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr(module, "detect_bos_ids", lambda tokenizer: [])
        assert main([*TRAIN, *SIX_STEPS, "--out", "whole"]) == 0
        options = ["--run", "two", "--out", "halves"]
        stopped = [*TRAIN, *SIX_STEPS, *options]
        stop_after(before, 3)
        assert main(stopped) == 1
    facts = place / "runs" / "two" / "facts.json"
    write_json(facts, {name: value for name, value in read_json(facts).items() if name != "bos"})
    (place / "cache").rename(place / "old")  # its rows are those without
    assert main(["train", *options, "--resume"]) == 0
    assert are_same_tensors(load_adapter_tensors(place / "whole"), load_adapter_tensors(place / "halves"))
    assert read_json(place / "halves" / "loratune.json")["bos"] is False


def stop_after(monkeypatch, steps: int) -> None:
    """As if somebody pressed Ctrl-C at that step."""
    from loratune.api import train
    from loratune.training.loop import run_loop

    def stopping(job, stop_requested):
        return run_loop(job, lambda: len(job.run_folder.read_log()) > steps)

    monkeypatch.setattr(train, "run_loop", stopping)


def test_a_run_that_was_begun_with_it_does_not_lose_it_silently(place, capsys):
    assert main([*TRAIN, *SIX_STEPS, "--out", "new"]) == 0
    save_model(place / "base", seed=4, begins="<|begin|>")
    path = place / "base" / "tokenizer.json"
    write_json(path, read_json(path) | {"post_processor": None})
    assert main(["train", "--run", "one", "--resume"]) == 2
    assert "bos: True when the run began, False now" in capsys.readouterr().err
    assert evaluate("--adapter", "new", "--model", "base") == 2
    assert (
        "trained with a BOS token in front of each prompt, but this base's tokenizer"
        in capsys.readouterr().err
    )


def test_adapters_with_and_without_are_not_measured_together(place, capsys):
    save_tuned(place, name="other")
    say_bos(place, True)
    assert evaluate("--adapter", "adapter", "other") == 2
    assert "--adapter other: trained without a BOS token in front, but adapter with" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_broken_word_about_it_is_refused(place, capsys):
    say_bos(place, "yes")
    assert evaluate() == 2
    assert "loratune.json: bos: broken: it must be true or false" in capsys.readouterr().err


def test_measuring_with_it_differs(place):
    """Else none of the above would show anything."""
    losses = []
    for bos in (True, False):
        say_bos(place, bos)
        assert evaluate("--generate", "0") == 0
        losses.append(written(place)["base"]["nll"])
    assert all(map(math.isfinite, losses)) and losses[0] != pytest.approx(losses[1], rel=2 * CLOSE)
