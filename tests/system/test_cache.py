"""The rule that every cache's key follows: other parts, other code or another library, another key."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import loratune
from loratune.system import cache as module
from loratune.system.cache import LIBRARIES, cache_key, code_in, library_versions, package_code

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def exact(value) -> object:
    """For a comparison that tells 1 from True."""
    if isinstance(value, list):
        return [exact(one) for one in value]
    return {name: exact(one) for name, one in value.items()} if isinstance(value, dict) else (type(value), value)


@given(values, values)
def test_keys_are_equal_where_the_parts_are(one, other):
    assert (cache_key(part=one) == cache_key(part=other)) == (exact(one) == exact(other))
    assert cache_key(part=one) != cache_key(other=one)


def test_parts_that_json_cannot_hold_are_no_parts():
    with pytest.raises(TypeError):
        cache_key(part=Path("a"))  # its content is meant, not its name


def test_our_code_is_part_of_every_key(monkeypatch):
    before = cache_key(part=1)
    monkeypatch.setattr(module, "package_code", lambda: "another")
    assert cache_key(part=1) != before


@pytest.mark.parametrize("name", LIBRARIES)
def test_each_library_that_computes_is_part_of_every_key(monkeypatch, name):
    before, versions = cache_key(part=1), library_versions()
    assert versions[name]
    monkeypatch.setattr(module, "library_versions", lambda: versions | {name: "9.9"})
    assert cache_key(part=1) != before


def test_the_code_is_that_of_all_files(tmp_path):
    def write(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return code_in(tmp_path)

    seen = [write("a.py", "1"), write("a.py", "2"), write("deep/b.py", ""), write("deep/b.py", "2")]
    (tmp_path / "deep" / "b.py").rename(tmp_path / "deep" / "c.py")
    assert len({*seen, code_in(tmp_path)}) == 5
    assert write("notes.txt", "of no matter") == code_in(tmp_path) == write("notes.txt", "")
    assert package_code() == code_in(Path(loratune.__file__).parent)
