"""The rule that every cache's key follows: other parts, other code or another library, another key."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import loratune
from loratune.system import cache as module
from loratune.system.cache import (
    LIBRARIES,
    compute_cache_key,
    hash_package_code,
    hash_python_files,
    list_library_versions,
)

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
def test_keys_are_equal_where_the_parts_are(one, other):
    assert (compute_cache_key(part=one) == compute_cache_key(part=other)) == (exact(one) == exact(other))
    assert compute_cache_key(part=one) != compute_cache_key(other=one)


def test_parts_that_json_cannot_hold_are_no_parts():
    with pytest.raises(TypeError):
        compute_cache_key(part=Path("a"))  # its content is meant, not its name


def test_our_code_is_part_of_every_key(monkeypatch):
    before = compute_cache_key(part=1)
    monkeypatch.setattr(module, "hash_package_code", lambda: "another")
    assert compute_cache_key(part=1) != before


@pytest.mark.parametrize("name", LIBRARIES)
def test_each_library_that_computes_is_part_of_every_key(monkeypatch, name):
    before, versions = compute_cache_key(part=1), list_library_versions()
    assert versions[name]
    monkeypatch.setattr(module, "list_library_versions", lambda: versions | {name: "9.9"})
    assert compute_cache_key(part=1) != before


def test_the_code_is_that_of_all_files(tmp_path):
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
