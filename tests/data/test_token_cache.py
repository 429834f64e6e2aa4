"""The token cache: its files and its key."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratune.data.example import Example
from loratune.data.template import load_template
from loratune.data.token_cache import (
    load_or_tokenize,
    make_token_cache_key,
    read_token_cache,
    write_token_cache,
)
from loratune.system import cache

ROWS = [Example([1, 2, 3], [4, 0], "a", "dolly"), Example([], [70_000], "\N{SNOWMAN}", "mine")]
COUNTS = {"dolly": {"rows": 2, "dropped": 1}}

ids = st.lists(st.integers(0, 2**31 - 1), max_size=5)


def fail():
    raise AssertionError("it is in the cache")


@given(st.lists(st.builds(Example, ids, ids, st.text(), st.text()), max_size=5))
def test_token_cache_reads_what_it_wrote(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("cache") / "tokens-0.npz"
    write_token_cache(path, rows, COUNTS)
    assert read_token_cache(path) == (rows, COUNTS)


def test_rows_are_tokenised_once(tmp_path):
    assert load_or_tokenize(tmp_path, "key", lambda: (ROWS, COUNTS)) == (ROWS, COUNTS)
    assert load_or_tokenize(tmp_path, "key", fail) == (ROWS, COUNTS)
    assert load_or_tokenize(tmp_path, "other", lambda: ([], {})) == ([], {})


@pytest.mark.parametrize(
    "harm", [lambda content: content[: len(content) // 2], lambda content: b"", lambda content: b"\x80\x04N."]
)
def test_broken_cache_file_is_replaced(tmp_path, harm):
    load_or_tokenize(tmp_path, "key", lambda: (ROWS, COUNTS))
    (path,) = tmp_path.iterdir()
    path.write_bytes(harm(path.read_bytes()))
    assert load_or_tokenize(tmp_path, "key", lambda: (ROWS[:1], {})) == (ROWS[:1], {})
    assert load_or_tokenize(tmp_path, "key", fail) == (ROWS[:1], {})


def test_unwritable_cache_is_ignored(tmp_path):
    (tmp_path / "file").write_text("")
    assert load_or_tokenize(tmp_path / "file" / "cache", "key", lambda: (ROWS, COUNTS)) == (ROWS, COUNTS)


def test_least_recently_used_cache_files_are_removed(tmp_path):
    for number in range(cache.TOKENS.max_files + 2):
        load_or_tokenize(tmp_path, str(number), lambda: (ROWS, COUNTS))
        os.utime(tmp_path / f"tokens-{number}.npz", (number, number))
    load_or_tokenize(tmp_path, "last", lambda: (ROWS, COUNTS))
    assert {path.name for path in tmp_path.iterdir()} == {
        "tokens-last.npz",
        *(
            f"tokens-{number}.npz"
            for number in range(cache.TOKENS.max_files + 2)[-(cache.TOKENS.max_files - 1) :]
        ),
    }


@pytest.mark.parametrize(
    "what",
    [
        "records",
        "weights",
        "config",
        "tokenizer",
        "template",
        "max_tokens",
        "learn",
        "bos",
        "code",
        "library",
    ],
)
def test_cache_key_covers_everything_the_tokens_depend_on(monkeypatch, what):
    def key(**changed: str) -> str:
        parts = {
            "records": "r",
            "weights": "w",
            "config": "c",
            "tokenizer": "t",
            "template": "plain",
            "max_tokens": "64",
            "learn": "all",
            "bos": "1",
        } | changed
        base = {name: parts[name] for name in ("weights", "config", "tokenizer")}
        return make_token_cache_key(
            parts["records"],
            base,
            load_template(parts["template"]),
            max_tokens=int(parts["max_tokens"]),
            learn=parts["learn"],
            bos=[int(parts["bos"])],
        )

    first = key()
    assert key() == first
    if what == "code":
        monkeypatch.setattr(cache, "hash_package_code", lambda: "another")
    if what == "library":
        monkeypatch.setattr(cache, "list_library_versions", dict)
    changed = {"template": "chatml", "max_tokens": "65", "bos": "2"}.get(what, "another")
    assert key(**{} if what in ("code", "library") else {what: changed}) != first
