"""Base models are identified by the content of weights, configuration and tokenizer."""

import json
import os
import shutil

import pytest

from loratune.models import resolve
from loratune.models.gguf import importer
from loratune.models.resolve import IN_USE_SECONDS, resolve_model
from loratune.system import cache as keys
from support.small_models import save_model

TOKENIZER_FILES = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "qwen.tiktoken",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def find_changed_hashes(folder, name: str) -> set[str]:
    """The parts of the model that are other ones when the file is."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    before = resolve_model(str(folder)).content
    path.write_text(path.read_text() + " " if path.exists() else "{}")
    there = resolve_model(str(folder)).content
    assert resolve_model(str(folder)).content == there
    path.write_text(path.read_text() + "\n")
    after = resolve_model(str(folder)).content
    assert {part for part in before if before[part] != there[part]} == {
        part for part in before if there[part] != after[part]
    }
    return {part for part in before if before[part] != after[part]}


@pytest.mark.parametrize("name", TOKENIZER_FILES)
def test_tokenizer_hash_covers_every_file_that_decides_ids(folder, name):
    assert find_changed_hashes(folder, name) == {"tokenizer"}


def test_config_hash_covers_the_configuration(folder):
    assert find_changed_hashes(folder, "config.json") == {"config"}


def test_config_hash_covers_the_weight_index(folder):
    before = resolve_model(str(folder)).content
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model.safetensors"}})
    )
    after = resolve_model(str(folder)).content
    assert [part for part in before if before[part] != after[part]] == ["config"]


def test_fingerprint_covers_weights_but_not_notes(folder):
    assert find_changed_hashes(folder, "README.md") == set()
    before = resolve_model(str(folder)).content
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    after = resolve_model(str(folder)).content
    assert [part for part in before if before[part] != after[part]] == ["weights"]


def test_tokenizer_hash_covers_file_names(folder):
    before = resolve_model(str(folder)).tokenizer
    (folder / "tokenizer_config.json").rename(folder / "added_tokens.json")
    assert resolve_model(str(folder)).tokenizer != before


@pytest.fixture
def unpacked(tmp_path, monkeypatch) -> list:
    """The folders that GGUF files were unpacked to."""
    unpacked = []

    def convert(file, folder):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        unpacked.append(folder)

    monkeypatch.setattr(importer, "convert_gguf", convert)
    monkeypatch.setenv("LORATUNE_CACHE", str(tmp_path / "cache"))
    return unpacked


def unpack(tmp_path, content: bytes = b"GGUF"):
    path = tmp_path / "some.gguf"
    path.write_bytes(content)
    return resolve_model(str(path))


def test_gguf_file_is_unpacked_once(tmp_path, unpacked):
    assert unpack(tmp_path) == unpack(tmp_path)
    assert [unpack(tmp_path).folder] == unpacked


@pytest.mark.parametrize("what", ["content", "code", "transformers", "gguf"])
def test_gguf_file_is_unpacked_again_if_code_or_libraries_changed(tmp_path, unpacked, monkeypatch, what):
    first = unpack(tmp_path)
    versions = keys.list_library_versions() | {what: "9.9"}
    if what == "code":
        monkeypatch.setattr(keys, "hash_package_code", lambda: "another")
    elif what != "content":
        monkeypatch.setattr(keys, "list_library_versions", lambda: versions)
    second = unpack(tmp_path, b"GGUF2" if what == "content" else b"GGUF")
    assert unpacked == [first.folder, second.folder] and first.folder != second.folder
    assert (first.content == second.content) == (what != "content")


def test_outdated_unpacked_folders_are_removed_unless_in_use(tmp_path, unpacked, monkeypatch):
    old = unpack(tmp_path).folder
    same_file = old.name.rpartition("-")[0]
    recent = shutil.copytree(old, old.with_name(f"{same_file}-0123"))
    of_the_first_version = shutil.copytree(old, old.with_name(same_file))
    another = unpack(tmp_path, b"GGUF2").folder
    for folder in (old, of_the_first_version, another):
        os.utime(folder, (1e9, 1e9))
    monkeypatch.setattr(keys, "hash_package_code", lambda: "another")
    new = unpack(tmp_path).folder
    assert {*(tmp_path / "cache").iterdir()} == {new, recent, another}


def test_recently_used_unpacked_folder_counts_as_in_use(tmp_path, unpacked):
    folder = unpack(tmp_path).folder
    os.utime(folder, (1e9, 1e9))
    unpack(tmp_path)
    assert resolve.time.time() - folder.stat().st_mtime < IN_USE_SECONDS
