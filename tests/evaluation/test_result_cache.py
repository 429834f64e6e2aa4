"""What was measured before: kept through kills, broken lines and full disks, and of one model only."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loratune.evaluation import result_cache
from loratune.evaluation.result_cache import ResultCache, load_result_cache
from loratune.system import cache

keys = st.text(max_size=8)
values = st.floats(allow_nan=False) | st.dictionaries(keys, st.lists(st.integers(0, 50_000)))


@settings(max_examples=50, deadline=None)
@given(before=st.lists(st.tuples(keys, values)), after=st.lists(st.tuples(keys, values)), data=st.data())
def test_what_a_kill_leaves_is_read_and_goes_on(before, after, data):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "new" / "measured-1.jsonl"
        whole = ResultCache(path)
        for key, value in before:
            whole.note(key, value)
        assert ResultCache(path).known == whole.known == dict(before)
        content = path.read_bytes()
        kept = data.draw(st.integers(0, len(content)))
        path.write_bytes(content[:kept])
        left = ResultCache(path)
        lines = content[:kept].count(b"\n")
        assert left.known in (
            dict(before[: max(lines - 1, 0)]),
            dict(before[:lines]),
        )  # without the broken line, or whole
        for key, value in after:
            left.note(key, value)
        assert ResultCache(path).known == left.known


def test_lines_of_another_form_count_as_none(tmp_path):
    path = tmp_path / "measured-1.jsonl"
    path.write_bytes(
        b'\n["a", 1.0]\n["b"]\n{}\n7\nnull\n["c", 1, 2]\n[[], 1]\n\xff\n["d", {"ids": [1], "ended": "eos"}]\n'
    )
    assert ResultCache(path).known == {"a": 1.0, "d": {"ids": [1], "ended": "eos"}}


def test_where_nothing_can_be_written_it_is_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    blocked = ResultCache(tmp_path / "file" / "measured-1.jsonl")
    blocked.note("a", 1.0)
    assert blocked.known == {"a": 1.0}


BASE = {"weights": "w", "config": "c", "tokenizer": "t"}


@pytest.mark.parametrize(
    "what",
    [
        "weights",
        "config",
        "tokenizer",
        "no adapter",
        "adapter_model",
        "adapter_config",
        "processor",
        "code",
        "library",
    ],
)
def test_a_result_cache_is_of_one_model_on_one_machine(tmp_path, monkeypatch, what):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("adapter_model", "adapter_config"):
        (adapter / name).write_text("1")

    def path(base: dict = BASE, adapter: Path | None = adapter) -> Path:
        return load_result_cache(tmp_path, base, adapter, "cpu").path

    first = path()
    (adapter / "README.md").write_text("of no matter")
    assert path() == first
    if what in BASE:
        assert path(BASE | {what: "another"}) != first
        return
    if what == "no adapter":
        assert path(adapter=None) != first
        return
    if what in ("adapter_model", "adapter_config"):
        (adapter / what).write_text("2")
    if what == "processor":
        monkeypatch.setattr(result_cache, "identify_processor", lambda _: "another")
    if what == "code":
        monkeypatch.setattr(cache, "hash_package_code", lambda: "another")
    if what == "library":
        monkeypatch.setattr(cache, "list_library_versions", dict)
    assert path() != first


def test_the_ones_not_used_for_longest_go(tmp_path):
    for number in range(cache.RESULTS.max_files + 3):
        path = tmp_path / f"measured-{number}.jsonl"
        path.write_text(f'["a", {number}]')
        os.utime(path, (number, number))
    assert ResultCache(tmp_path / "measured-0.jsonl").known == {"a": 0}
    left = {int(path.stem.partition("-")[2]) for path in tmp_path.iterdir()}
    assert left == {0, *range(4, cache.RESULTS.max_files + 3)}
