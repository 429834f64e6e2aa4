"""A GGUF file to a model folder."""

import pytest

from loratune.models.find import find_base


@pytest.mark.slow
def test_unpacking_shows_one_bar_and_it_is_ours(tmp_path, monkeypatch, capfd):
    """`transformers` has no switch for its own one."""
    monkeypatch.setenv("LORATUNE_CACHE", str(tmp_path))
    find_base("smollm2-135m")
    said = capfd.readouterr()
    assert said.err == "" and said.out.count("unpacking the model (once)") == 1
