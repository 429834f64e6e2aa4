"""A GGUF file is unpacked once, also when two processes begin at the same time."""

from types import SimpleNamespace

from transformers import AutoModelForCausalLM

from loratune.models import gguf
from loratune.models.gguf import convert
from small_models import LLAMA_SHAPES, reference


def test_the_slower_of_two_processes_takes_what_the_faster_one_unpacked(tmp_path, monkeypatch):
    folder = tmp_path / "unpacked"

    def save_while_another_process_finishes(beside):
        (beside / "tokenizer.json").write_text("{}")
        folder.mkdir()
        (folder / "config.json").write_text("of the faster one")

    tokenizer = SimpleNamespace(save=save_while_another_process_finishes)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda **_: reference(LLAMA_SHAPES["smollm2"]))
    monkeypatch.setattr(gguf.Tokenizer, "load", lambda *_, **__: tokenizer)
    convert(tmp_path / "model.gguf", folder)
    assert [path.name for path in tmp_path.iterdir()] == ["unpacked"]
    assert (folder / "config.json").read_text() == "of the faster one"
