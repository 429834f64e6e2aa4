"""An instruct model as the base: it is asked in its own chat template, too, as transformers would ask it."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import loratune
from loratune.cli.main import main
from loratune.models.resolve import format_model_title, resolve_model
from support.evaluating import PROSE
from support.small_models import save_model
from support.tuned_models import save_tuned

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role + ': ' + message.content | trim + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
ENDLESS = "{% for message in messages %}{{ message.role + ': ' + message.content }}{% endfor %}"
ROWS = [
    {"instruction": "Name a colour.", "output": "Blue."},
    {"instruction": "Say it again.", "input": "One <|end|> two.", "output": "One <|end|> two, and more."},
    {"instruction": " Count. ", "output": "1 2 3"},
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a base, an adapter, data and prompts; also the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORATUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("loratune.evaluation.forgetting.BUILT_IN_PROSE", PROSE)
    save_model(tmp_path / "base", seed=len("base"))
    (tmp_path / "test.json").write_text('["Name a colour."]')
    (tmp_path / "data").mkdir()
    for split in ("train", "val", "test"):
        lines = "".join(json.dumps(row) + "\n" for row in ROWS)
        (tmp_path / "data" / f"{split}.jsonl").write_text(lines)
    return tmp_path


def write_template(place, template: str) -> None:
    """Give the base a chat template, and make an adapter for it."""
    (place / "base" / "chat_template.jinja").write_text(template)
    save_tuned(place)


def evaluate(place, *options: str, adapter: str = "adapter") -> dict:
    words = ["--adapter", adapter, "--generate", "3", "--max-new-tokens", "6", "--threads", "1"]
    assert main(["evaluate", *words, *options]) == 0
    return json.loads((place / "evaluation.json").read_text())


@torch.no_grad()
def test_base_is_measured_in_its_own_chat_template_as_transformers_renders_it(place):
    write_template(place, CHAT_TEMPLATE)
    result = evaluate(place)
    model = AutoModelForCausalLM.from_pretrained(place / "base")
    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    for row, example in zip([ROWS[0], ROWS[2]], [result["examples"][0], result["examples"][2]], strict=True):
        messages = [{"role": "user", "content": row["instruction"]}]
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        response = [*tokenizer(row["output"])["input_ids"], tokenizer.eos_token_id]
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        nll = torch.nn.functional.cross_entropy(logits, torch.tensor(response)).item()
        assert example["base_chat"]["nll"] == pytest.approx(nll, rel=1e-4)
        answer = model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)[0, len(prompt) :]
        text = tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert example["base_chat"]["answer"] == text.strip()
    assert result["base_chat"]["nll"] != result["base"]["nll"]
    change = result["difference_chat"]["nll"]["mean"]
    assert change == pytest.approx(result["tuned"]["nll"] - result["base_chat"]["nll"])


def test_change_is_against_the_strongest_base(place, capsys):
    write_template(place, CHAT_TEMPLATE)
    result = evaluate(place)
    losses = {name: result[name]["nll"] for name in ("base", "base_bare", "base_chat")}
    strongest = min(losses, key=losses.__getitem__)
    assert result["strongest_base"] == strongest
    shown = " ".join(capsys.readouterr().out.split())
    cells = [f"{losses[name]:.3f}{'*' * (name == strongest)}" for name in ("base_bare", "base", "base_chat")]
    tuned = result["tuned"]["nll"]
    assert f"{' '.join(cells)} {tuned:.3f} {tuned - losses[strongest]:+.3f}" in shown
    assert "own: in its own chat template" in shown and "*: the strongest way to ask the base" in shown
    for example in result["examples"]:
        assert example["change"] == pytest.approx(example["tuned"]["nll"] - example[strongest]["nll"])


def test_own_template_can_be_left_out(place):
    write_template(place, CHAT_TEMPLATE)
    result = evaluate(place, "--no-own-template")
    assert not {"base_chat", "difference_chat"} & result.keys()


def test_a_base_without_chat_template_has_no_such_column(place, capsys):
    save_tuned(place)
    assert not {"base_chat", "difference_chat"} & evaluate(place).keys()
    assert "chat template" not in capsys.readouterr().out


def test_a_chat_template_that_cannot_be_used_is_left_out_with_the_reason(place, capsys):
    for template, reason in (
        (ENDLESS, "no special token follows an answer in the chat template, so answers could not end"),
        ("{{ raise_exception('not for you') }}", "refuses this conversation: not for you"),
        ("{% if %}", "line 1: Expected an expression"),
    ):
        write_template(place, template)
        assert "base_chat" not in evaluate(place)
        shown = " ".join(capsys.readouterr().out.split())
        assert f"The base's own chat template is not used: {'' if reason[0] == 'n' else 'the chat'}" in shown
        assert reason in shown


def test_compare_asks_the_base_in_its_own_template(place):
    write_template(place, CHAT_TEMPLATE)
    sampled = ["--temperature", "1", "--max-new-tokens", "12", "--repetition-penalty", "1", "--threads", "1"]
    compare = ["compare", "--adapter", "adapter", *sampled]
    answers = {}
    for choice in ("own", "same"):
        assert main([*compare, "--base-template", choice]) == 0
        answers[choice] = json.loads((place / "model_comparison.json").read_text())[0]
    assert answers["own"]["fine_tuned"] == answers["same"]["fine_tuned"]
    assert answers["own"]["regular"] != answers["same"]["regular"]
    example = evaluate(place, *sampled)["examples"][0]
    assert example["base_chat"]["answer"] == answers["own"]["regular"]
    assert example["base"]["answer"] == answers["same"]["regular"]
    assert main(compare) == 0
    assert "its own chat template" in (place / "model_comparison.html").read_text()


def train(place, *options: str) -> dict:
    """Train for a step, and return loratune.json."""
    words = ["--steps", "1", "--max-tokens", "256", "--out", "new", "--threads", "1"]
    assert main(["train", "--model", "base", *words, *options]) == 0
    return json.loads((place / "new" / "loratune.json").read_text())


@pytest.mark.parametrize("has_template", [True, False])
def test_train_says_where_the_chat_template_is_not_what_it_trains(place, capsys, has_template):
    if has_template:
        write_template(place, CHAT_TEMPLATE)
    assert train(place, "--template", "instruction")["template"]["name"] == "instruction"
    said = "base has a chat template of its own" in " ".join(capsys.readouterr().out.split())
    assert said == has_template


def test_an_adapter_is_trained_and_used_in_the_chat_template(place, capsys):
    write_template(place, CHAT_TEMPLATE)
    template = train(place)["template"]
    assert (template["name"], template["chat_template"]) == ("chat", CHAT_TEMPLATE)
    assert "chat template of its own" not in capsys.readouterr().out
    result = evaluate(place, adapter="new")
    assert result["template"] == "chat" and result["base"] == result["base_chat"]
    # It learned what it is asked in, whatever the base's template becomes: the stored one is used.
    asked = loratune.load("new", model="base").encode(["Name a colour."])
    (place / "base" / "chat_template.jinja").write_text("{{ raise_exception('changed') }}")
    assert loratune.load("new", model="base").encode(["Name a colour."]) == asked
    assert main(["compare", "--adapter", "new", "--model", "base", "--threads", "1"]) == 0


def test_a_base_without_a_chat_template_is_trained_in_ours_unless_one_was_asked_for(place, capsys):
    assert train(place)["template"]["name"] == "instruction"
    capsys.readouterr()
    assert main(["train", "--model", "base", "--template", "chat", "--steps", "1"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert (
        "--template chat: this base model has no chat template; choose another one, such as instruction, or "
        "name a .jinja file" in told
    )
    (place / "chat.jinja").write_text(CHAT_TEMPLATE)
    capsys.readouterr()
    train(place, "--template", "chat.jinja")  # which is not the base model's own, although it is called so
    assert "Template: chat.jinja." in capsys.readouterr().out
    (place / "own.jinja").write_text(CHAT_TEMPLATE)
    assert train(place, "--template", "own.jinja")["template"]["name"] == "own.jinja"


def test_a_chat_template_without_an_end_is_refused_where_it_was_asked_for(place, capsys):
    write_template(place, ENDLESS)
    assert main(["train", "--model", "base", "--template", "chat", "--steps", "1"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "--template: no special token follows an answer in the chat template" in told
    assert "choose another one, such as instruction" in told
    assert train(place)["template"]["name"] == "instruction"  # by default it is not used, which is said
    assert "The base's own chat template is not used" in " ".join(capsys.readouterr().out.split())


def test_the_bundled_model_is_called_what_it_is():
    assert resolve_model("smollm2-135m").title == "smollm2-135m (SmolLM2-135M-Instruct)"
    assert format_model_title("gpt2", "openai-community/gpt2") == "gpt2"
    assert format_model_title("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"
