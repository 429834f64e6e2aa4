"""An instruct model as the base: it is said that it is not asked in its own chat template."""

import json

import pytest

from loratune.cli.main import main
from loratune.models.resolve import format_model_title, resolve_model
from support.small_models import save_model
from support.tuned_models import save_tuned

CHAT_TEMPLATE = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
TOLD = (
    "base has a chat template of its own: it may have been tuned to answer already. "
    "It is asked in the template 'instruction' instead"
)


@pytest.fixture(params=[True, False], ids=["instruct", "plain"])
def is_instruct(request, tmp_path, monkeypatch) -> bool:
    """Whether the base has a chat template. The working directory holds it, an adapter, data and prompts."""
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "base", seed=len("base"))
    if request.param:
        (tmp_path / "base" / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    save_tuned(tmp_path)
    (tmp_path / "test.json").write_text('["Name a colour."]')
    (tmp_path / "data").mkdir()
    rows = "".join(json.dumps({"instruction": f"Say {n}.", "output": str(n)}) + "\n" for n in range(4))
    for split in ("train", "val", "test"):
        (tmp_path / "data" / f"{split}.jsonl").write_text(rows)
    return request.param


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--model", "base", "--steps", "1", "--max-tokens", "256", "--out", "new", "--threads", "1"],
        ["evaluate", "--adapter", "adapter", "--generate", "0", "--threads", "1"],
        ["compare", "--adapter", "adapter", "--max-new-tokens", "2", "--threads", "1"],
    ],
    ids=lambda command: command[0],
)
def test_every_command_that_asks_it_says_in_which_template(is_instruct, capsys, monkeypatch, cache, command):
    monkeypatch.setenv("LORATUNE_CACHE", str(cache))
    assert main(command) == 0
    assert (TOLD in " ".join(capsys.readouterr().out.split())) == is_instruct


def test_the_bundled_model_is_called_what_it_is():
    assert resolve_model("smollm2-135m").title == "smollm2-135m (SmolLM2-135M-Instruct)"
    assert format_model_title("gpt2", "openai-community/gpt2") == "gpt2"
    assert format_model_title("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"
