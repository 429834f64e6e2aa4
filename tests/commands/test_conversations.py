"""A chat file through every command, in a chat template that shows tools: as a new user would do it."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import loratune
from loratune.cli.main import main
from loratune.data.jsonl import read_records
from support.chat_templates import LLAMA_3_2, QWEN_2_5
from support.evaluating import PROSE
from support.small_models import save_model

THINGS = ("kettle", "marble", "boot", "ladder", "whistle", "tent", "oven", "anchor", "flute", "saddle")
TOOLS = [{"type": "function", "function": {"name": "find_shelf", "parameters": {"type": "object"}}}]


def build_chat(thing: str, number: int) -> dict:
    call = {"name": "find_shelf", "arguments": json.dumps({"thing": thing, "room": number})}
    return {
        "messages": [
            {"role": "system", "content": f"You keep store number {number}. <|im_end|>"},
            {"role": "user", "content": f"Where is the {thing}, of colour {number}?"},
            {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]},
            {"role": "tool", "content": f"shelf {number}"},
            {"role": "assistant", "content": f"The {thing} is on shelf {number}."},
            {"role": "user", "content": f"And what does the {thing} weigh?"},
            {"role": "assistant", "content": "A guess: 1 kg.", "weight": 0},
            {"role": "user", "content": f"Measure the {thing}, please."},
            {"role": "assistant", "content": f"{number} kg, and the {thing} is dusty."},
        ],
        "tools": TOOLS,
    }


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a base that has a chat template, and chats; also the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORATUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("loratune.evaluation.forgetting.BUILT_IN_PROSE", PROSE)
    save_model(tmp_path / "base", seed=len("base"))
    give_template(tmp_path, QWEN_2_5)
    chats = [build_chat(thing, number) for number, thing in enumerate(THINGS)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return tmp_path


def give_template(place, source: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    tokenizer.chat_template = source
    tokenizer.add_special_tokens(
        {
            "eos_token": "<|im_end|>",
            "additional_special_tokens": ["<|im_start|>", "<|begin_of_text|>", "<|eot_id|>"],
        }
        | ({"bos_token": "<|begin_of_text|>"} if "bos_token" in source else {})
    )
    tokenizer.save_pretrained(place / "base")
    model = AutoModelForCausalLM.from_pretrained(place / "base")
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(place / "base")


def prepare(*options: str) -> int:
    return main(["prepare", "--model", "base", "--data", "chats.jsonl", "--val-fraction", "0.2", *options])


def train(*options: str) -> int:
    words = ["--steps", "2", "--max-tokens", "512", "--threads", "1", *options]
    return main(["train", "--model", "base", *words])


def test_a_chat_file_goes_through_every_command(place, capsys):
    assert prepare() == 0
    assert "30 answers in conversations are learned" in " ".join(capsys.readouterr().out.split())
    assert main(["preview", "--model", "base", "--rows", "1"]) == 0
    shown = capsys.readouterr().out.replace("¦", "")
    assert "<tools>" in shown and "<tool_call>" in shown and "■<|im_end|>⟧" in shown
    assert "1 kg" in shown and "⟦A" not in shown  # of weight 0
    assert train() == 0
    assert "the base model's own chat template" in " ".join(capsys.readouterr().out.split())
    assert main(["evaluate", "--generate", "2", "--max-new-tokens", "4", "--threads", "1"]) == 0
    result = json.loads((place / "evaluation.json").read_text())
    assert result["template"] == "chat" and result["base"] == result["base_chat"]
    prompts = [[{"role": "user", "content": "Where is the drum?"}], "Where is the bell?"]
    (place / "test.json").write_text(json.dumps(prompts))
    assert main(["compare", "--max-new-tokens", "4", "--threads", "1"]) == 0
    rows = json.loads((place / "model_comparison.json").read_text())
    assert [row["prompt"] for row in rows] == ["User: Where is the drum?", "Where is the bell?"]
    assert rows[0]["messages"] == prompts[0] and "messages" not in rows[1]

    # The loss is that of transformers and PEFT for the last answer, and Python answers in the same template.
    tokenizer = AutoTokenizer.from_pretrained(place / "model" / "gpt2_lora_finetuned")
    base = AutoModelForCausalLM.from_pretrained(place / "base")
    peft = PeftModel.from_pretrained(base, place / "model" / "gpt2_lora_finetuned").eval()
    record = read_records(place / "data" / "test.jsonl")[0]
    messages = [dict(message) for message in record.messages]
    # The marker in the system message is text to us; transformers would take it for the token.
    messages[0]["content"] = messages[0]["content"].replace("<|im_end|>", "none")
    prompt = tokenizer.apply_chat_template(
        messages[:-1], tools=record.tools, add_generation_prompt=True, return_dict=False
    )
    response = tokenizer(messages[-1]["content"] + "<|im_end|>")["input_ids"]
    with torch.no_grad():
        logits = peft(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(response)).item()
    (place / "one.jsonl").write_text(json.dumps({"messages": messages, "tools": record.tools}) + "\n")
    assert main(["evaluate", "--data", "one.jsonl", "--generate", "0", "--threads", "1"]) == 0
    result = json.loads((place / "evaluation.json").read_text())
    assert result["tuned"]["nll"] == pytest.approx(expected, rel=1e-4)
    model = loratune.load("model/gpt2_lora_finetuned", threads=1)
    conversation = [{"role": "user", "content": "Where is the drum?"}]
    assert model.generate(conversation, max_new_tokens=4) == model.generate(
        "Where is the drum?", max_new_tokens=4
    )
    assert model.generate([conversation], max_new_tokens=4) == [
        model.generate(conversation, max_new_tokens=4)
    ]
    assert model.encode([conversation]) == [
        tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
    ]


def test_calls_that_the_template_does_not_show_are_refused_with_file_and_line(place, capsys):
    (place / "base" / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content }}"
        "{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    assert prepare() == 2
    told = " ".join(capsys.readouterr().err.split())
    assert (
        "chats.jsonl, line 1: the chat template does not show tool calls, such as that of find_shelf" in told
    )
    assert "write the call into the message's content" in told
    assert prepare("--template", "instruction") == 2
    assert "line 1: the template 'instruction' has no form for tool calls" in " ".join(
        capsys.readouterr().err.split()
    )
    assert prepare("--skip-bad") == 2  # all of them


def test_prompts_that_are_no_conversations_are_refused_with_their_entry(place, capsys):
    assert prepare() == 0 and train() == 0
    capsys.readouterr()
    (place / "test.json").write_text(
        json.dumps(
            [
                [{"role": "assistant", "content": "Hi"}],
                [{"role": "user", "content": " "}],
                [{"role": "user", "content": "Hi"}, {"role": "user", "content": "Hi"}],
                {"messages": []},
            ]
        )
    )
    assert main(["compare", "--threads", "1"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    for problem in (
        "test.json, entry 1: its last message is an assistant's",
        "test.json, entry 2: message 1: content is blank",
        "test.json, entry 3: message 2: a message of user follows one of user; join them into one message",
        "test.json, entry 4: it has no messages",
    ):
        assert problem in told


def test_another_template_of_a_conversation_shows_a_transcript(place):
    assert prepare() == 0
    without_calls = place / "plain.jsonl"
    chats = [build_chat(thing, number) for number, thing in enumerate(THINGS)]
    for chat in chats:
        del chat["tools"]
        chat["messages"] = [chat["messages"][0], *chat["messages"][5:]]
    without_calls.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    options = ["--data", "plain.jsonl", "--template", "instruction", "--val-fraction", "0.2"]
    assert main(["prepare", "--model", "base", *options]) == 0
    assert train("--template", "instruction") == 0
    assert main(["evaluate", "--generate", "2", "--max-new-tokens", "4", "--threads", "1"]) == 0
    result = json.loads((place / "evaluation.json").read_text())
    # The same last answers, asked for in three forms.
    assert {result[name]["target_tokens"] for name in ("base", "base_chat", "base_bare", "tuned")} == {
        result["base"]["target_tokens"]
    }


def test_a_run_is_resumed_with_the_date_that_it_began_with(place, capsys, monkeypatch):
    give_template(place, LLAMA_3_2)
    for chat in (lines := [json.loads(line) for line in (place / "chats.jsonl").read_text().splitlines()]):
        chat["messages"] = [chat["messages"][0], *chat["messages"][5:]]
        del chat["tools"]
    (place / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in lines))
    assert prepare() == 0
    assert train("--run", "one") == 0
    stored = json.loads((place / "model" / "gpt2_lora_finetuned" / "loratune.json").read_text())["template"]
    facts = place / "runs" / "one" / "facts.json"
    assert json.loads(facts.read_text())["template_date"] == stored["date"]

    class Tomorrow:
        @staticmethod
        def today():
            import datetime

            return datetime.date.today() + datetime.timedelta(days=1)

    monkeypatch.setattr("loratune.data.resolve_template.date", Tomorrow)
    assert (
        main(["train", "--run", "one", "--resume", "--steps", "4", "--accept-changes", "--threads", "1"]) == 0
    )
    assert json.loads(facts.read_text())["template_date"] == stored["date"]
    changed = {one["name"] for one in json.loads(facts.read_text())["changes"]}
    assert changed == {"--steps"}


@pytest.mark.parametrize("template", ["auto", "instruction"])
def test_plain_text_is_learned_whole_and_measured(place, capsys, template):
    texts = [f"The {thing} stands on shelf {number}. " * 20 for number, thing in enumerate(THINGS)]
    (place / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = ["--model", "base", "--max-tokens", "128", "--template", template]
    assert main(["prepare", "--data", "texts.jsonl", "--val-fraction", "0.2", *words]) == 0
    report = json.loads((place / "data" / "prepare_report.json").read_text())
    counts = report["sources"]["texts"]
    assert counts["rows_split"] == 10 and counts["responses_cut"] == counts["dropped"] == 0
    assert "pieces of a long text" in " ".join(capsys.readouterr().out.split())
    assert main(["preview", *words, "--rows", "1"]) == 0
    assert "learned" in capsys.readouterr().out
    assert main(["train", *words, "--steps", "2", "--threads", "1"]) == 0
    assert main(["evaluate", "--max-tokens", "128", "--generate", "4", "--threads", "1"]) == 0
    result = json.loads((place / "evaluation.json").read_text())
    assert result["answered_rows"] == 0  # there is nothing to answer
    held_out = read_records(place / "data" / "test.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    tokens = sum(len(tokenizer(record.output)["input_ids"]) + 1 for record in held_out)
    # Every token and the end, but for the first of each text, which nothing precedes.
    assert result["tuned"]["target_tokens"] == tokens - len(held_out)
    assert {result[name]["nll"] for name in ("base", "base_bare", "base_chat")} == {result["base"]["nll"]}
    (place / "test.json").write_text('["Where is the bell?"]')
    assert main(["compare", "--max-new-tokens", "4", "--threads", "1"]) == 0
