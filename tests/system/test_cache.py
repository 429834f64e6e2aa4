"""The cache: keys cover parts, code and libraries; files are read, written and pruned."""

import os
from pathlib import Path
from zipfile import BadZipFile

import pytest
from hypothesis import given
from hypothesis import strategies as st

import loratune
from loratune.errors import UserError
from loratune.system import cache as module
from loratune.system.cache import (
    CACHE_KINDS,
    LIBRARIES,
    UNPACKED_MODELS,
    CacheKind,
    compute_cache_key,
    get_cache_folder,
    get_cache_path,
    hash_package_code,
    hash_python_files,
    list_library_versions,
    mark_used,
    prune_cache,
    read_cached,
    write_cached,
)

KIND = CacheKind("things", ".txt", "things", 2)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def exact(value) -> object:
    """For a comparison that tells 1 from True."""
    if isinstance(value, list):
        return [exact(one) for one in value]
    return (
        {name: exact(one) for name, one in value.items()} if isinstance(value, dict) else (type(value), value)
    )


@given(values, values)
def test_keys_are_equal_exactly_if_the_parts_are(one, other):
    assert (compute_cache_key(part=one) == compute_cache_key(part=other)) == (exact(one) == exact(other))
    assert compute_cache_key(part=one) != compute_cache_key(other=one)


def test_parts_must_be_json_values():
    with pytest.raises(TypeError):
        compute_cache_key(part=Path("a"))  # its content is meant, not its name


def test_every_key_covers_the_package_code(monkeypatch):
    before = compute_cache_key(part=1)
    monkeypatch.setattr(module, "hash_package_code", lambda: "another")
    assert compute_cache_key(part=1) != before


@pytest.mark.parametrize("name", LIBRARIES)
def test_every_key_covers_the_library_versions(monkeypatch, name):
    before, versions = compute_cache_key(part=1), list_library_versions()
    assert versions[name]
    monkeypatch.setattr(module, "list_library_versions", lambda: versions | {name: "9.9"})
    assert compute_cache_key(part=1) != before


def test_code_hash_covers_all_files(tmp_path):
    def write(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return hash_python_files(tmp_path)

    seen = [write("a.py", "1"), write("a.py", "2"), write("deep/b.py", ""), write("deep/b.py", "2")]
    (tmp_path / "deep" / "b.py").rename(tmp_path / "deep" / "c.py")
    assert len({*seen, hash_python_files(tmp_path)}) == 5
    assert write("notes.txt", "of no matter") == hash_python_files(tmp_path) == write("notes.txt", "")
    assert hash_package_code() == hash_python_files(Path(loratune.__file__).parent)


def test_cache_folder_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LORATUNE_CACHE", str(tmp_path))
    assert get_cache_folder() == tmp_path
    monkeypatch.setenv("LORATUNE_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert get_cache_folder() == tmp_path / ".cache" / "loratune"


def test_each_kind_matches_only_its_own_files():
    paths = {kind: get_cache_path(Path("cache"), kind, "0123") for kind in CACHE_KINDS}
    for kind in CACHE_KINDS:
        assert [other for other, path in paths.items() if path.match(kind.pattern)] == [kind]


def test_cached_file_is_marked_as_used_when_read(tmp_path):
    path = get_cache_path(tmp_path, KIND, "a")
    write_cached(path, KIND, lambda beside: beside.write_text("1"))
    os.utime(path, (1, 1))
    assert read_cached(path, Path.read_text) == "1"
    assert path.stat().st_mtime > 1


ERRORS = [
    UserError("x"),
    OSError(),
    ValueError(),
    TypeError(),
    KeyError(),
    IndexError(),
    EOFError(),
    BadZipFile(),
]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_broken_file_is_a_cache_miss(tmp_path, error):
    def fail(_):
        raise error

    path = tmp_path / "things-a.txt"
    path.write_text("")
    os.utime(path, (1, 1))
    assert read_cached(path, fail) is None
    assert path.stat().st_mtime == 1
    assert read_cached(tmp_path / "missing", Path.read_text) is None


def test_read_only_cache_is_ignored(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "things-a.txt"
    write_cached(path, KIND, lambda beside: beside.write_text("1"))
    mark_used(path)

    def fill_disk(beside):
        beside.write_text("half")
        raise OSError(28, "No space left on device")

    write_cached(tmp_path / "things-b.txt", KIND, fill_disk)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_pruning_keeps_the_newest_files_of_a_kind(tmp_path):
    for number in range(5):
        (tmp_path / f"things-{number}.txt").write_text("")
        os.utime(tmp_path / f"things-{number}.txt", (number, number))
    (tmp_path / "others-0.txt").write_text("")
    mark_used(tmp_path / "things-0.txt")
    prune_cache(tmp_path, KIND)
    assert {path.name for path in tmp_path.iterdir()} == {"things-0.txt", "things-4.txt", "others-0.txt"}
    prune_cache(tmp_path, CacheKind("things", ".txt", "", UNPACKED_MODELS.max_files))
    assert len(list(tmp_path.iterdir())) == 3
