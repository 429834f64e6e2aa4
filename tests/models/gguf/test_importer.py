"""A GGUF file becomes a model folder."""

import pytest

from loratune.models.gguf.importer import isolate_file
from loratune.models.resolve import find_bundled_file, resolve_model
from loratune.models.tokenizer import Tokenizer
from support.small_models import save_model


@pytest.mark.slow
def test_unpacking_shows_only_our_progress_bar(tmp_path, monkeypatch, capfd):
    """`transformers` has no switch for its own one."""
    monkeypatch.setenv("LORATUNE_CACHE", str(tmp_path))
    resolve_model("smollm2-135m")
    captured = capfd.readouterr()
    assert captured.err == "" and captured.out.count("unpacking the model (once)") == 1


def test_gguf_file_is_isolated_in_its_own_folder(tmp_path):
    save_model(tmp_path)
    file = tmp_path / "some.gguf"
    file.write_bytes(b"GGUF")
    with isolate_file(file) as place:
        assert [path.name for path in place.iterdir()] == ["some.gguf"]
        assert (place / "some.gguf").read_bytes() == b"GGUF"
    assert not place.exists() and file.exists()


@pytest.mark.slow
def test_tokenizer_beside_a_gguf_file_is_ignored(tmp_path, monkeypatch):
    """`transformers` would take its tokenizer.json for the file's own tokenizer."""
    monkeypatch.setenv("LORATUNE_CACHE", str(tmp_path / "cache"))
    save_model(tmp_path / "model")
    file = tmp_path / "model" / "some.gguf"
    file.symlink_to(find_bundled_file("smollm2-135m"))
    resolved = resolve_model(str(file))
    tokenizer = Tokenizer.load(resolved.folder)
    assert tokenizer.size == 49152
    assert tokenizer.hugging_face.convert_ids_to_tokens(tokenizer.eos_id) == "<|im_end|>"
