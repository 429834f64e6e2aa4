"""Hostile GGUF files are refused before they take memory or time."""

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from loratune.errors import UserError
from loratune.models.gguf.header import check_gguf_sizes, read_gguf_header
from loratune.models.resolve import BUNDLED_MODELS, resolve_model
from support.deadline import enforce_deadline

WIDTH, LAYERS, MLP, VOCABULARY = 8, 2, 16, 10


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> bytes:
    """The header and tensors of a small model, by the package's own writer."""
    path = tmp_path_factory.mktemp("gguf") / "good.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(2)
    writer.add_vocab_size(VOCABULARY)
    writer.add_token_list(["a", "é", "c"])
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_tensor("token_embd.weight", np.zeros((VOCABULARY, WIDTH), np.float32))
    for number in range(LAYERS):
        writer.add_tensor(f"blk.{number}.ffn_down.weight", np.ones((WIDTH, MLP), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def read_checked_header(folder: Path, content: bytes):
    path = folder / "some.gguf"
    path.write_bytes(content)
    with enforce_deadline():
        header = read_gguf_header(path)
        check_gguf_sizes(header)
    return header


def test_header_equals_what_the_gguf_package_reads(tmp_path, good):
    header = read_checked_header(tmp_path, good)
    theirs = GGUFReader(tmp_path / "some.gguf")
    assert {tensor.name: tuple(tensor.shape.tolist()) for tensor in theirs.tensors} == {
        name: tensor.shape for name, tensor in header.tensors.items()
    }
    for tensor in theirs.tensors:
        assert header.tensors[tensor.name].end - header.tensors[tensor.name].start == tensor.n_bytes
    assert header.values["llama.block_count"] == LAYERS and header.values["tokenizer.ggml.tokens"] is None


def test_bundled_model_is_accepted():
    from importlib.util import find_spec

    module, file, *_ = BUNDLED_MODELS["smollm2-135m"]
    header = read_gguf_header(Path(find_spec(module).origin).parent / file)
    check_gguf_sizes(header)
    assert len(header.tensors) == 272 and header.values["llama.embedding_length"] == 576


def overwrite_after(content: bytes, name: bytes, skip: int, value: bytes) -> bytes:
    """`content` with `value` written `skip` bytes after the end of `name`."""
    at = content.index(name) + len(name) + skip
    return content[:at] + value + content[at + len(value) :]


HUGE = struct.pack("<Q", 2**60)
LIES = {
    "no magic": lambda good: b"GGML" + good[4:],
    "empty": lambda good: b"",
    "three bytes": lambda good: b"GGU",
    "the magic alone": lambda good: b"GGUF",
    "another version": lambda good: good[:4] + struct.pack("<I", 9) + good[8:],
    "big-endian": lambda good: good[:4] + struct.pack(">I", 3) + good[8:],
    "2^60 tensors": lambda good: good[:8] + HUGE + good[16:],
    "2^60 values": lambda good: good[:16] + HUGE + good[24:],
    "2^60 letters in a name": lambda good: good[:24] + HUGE + good[32:],
    "2^60 tokens": lambda good: overwrite_after(good, b"tokenizer.ggml.tokens", 8, HUGE),
    "2^60 numbers": lambda good: overwrite_after(good, b"some.numbers", 8, HUGE),
    "numbers past the end": lambda good: overwrite_after(
        good, b"some.numbers", 8, struct.pack("<Q", len(good))
    ),
    "a list of lists": lambda good: overwrite_after(good, b"some.numbers", 4, struct.pack("<I", 9)),
    "an unknown type of list": lambda good: overwrite_after(good, b"some.numbers", 4, struct.pack("<I", 77)),
    "an unknown type of value": lambda good: overwrite_after(good, b"some.numbers", 0, struct.pack("<I", 13)),
    "a name twice": lambda good: good.replace(b"llama.block_count", b"llama.vocab_size\x04", 1).replace(
        b"some.numbers", b"some.nu\xffbers"
    ),
    "2^31 dimensions": lambda good: overwrite_after(good, b"token_embd.weight", 0, struct.pack("<I", 2**31)),
    "a dimension of 2^60": lambda good: overwrite_after(good, b"token_embd.weight", 4, HUGE),
    "a product above 2^64": lambda good: overwrite_after(
        good, b"token_embd.weight", 4, struct.pack("<QQ", 2**32, 2**32)
    ),
    "a dimension of 0": lambda good: overwrite_after(good, b"token_embd.weight", 4, struct.pack("<Q", 0)),
    "an unknown type of tensor": lambda good: overwrite_after(
        good, b"token_embd.weight", 20, struct.pack("<I", 99)
    ),
    "a type whose blocks do not fit": lambda good: overwrite_after(
        good, b"token_embd.weight", 20, struct.pack("<I", 2)
    ),
    "an offset past the end": lambda good: overwrite_after(good, b"token_embd.weight", 24, HUGE),
    "an offset between the places": lambda good: overwrite_after(
        good, b"blk.1.ffn_down.weight", 24, struct.pack("<Q", 1)
    ),
    "overlapping tensors": lambda good: overwrite_after(
        good, b"blk.1.ffn_down.weight", 24, struct.pack("<Q", 0)
    ),
    "a tensor twice": lambda good: good.replace(b"blk.1.ffn_down", b"blk.0.ffn_down"),
    "tensors cut away": lambda good: good[:-600],
    "a billion layers": lambda good: overwrite_after(good, b"llama.block_count", 4, struct.pack("<I", 10**9)),
    "no layers": lambda good: overwrite_after(good, b"llama.block_count", 4, struct.pack("<I", 0)),
    "more layers than there are": lambda good: overwrite_after(
        good, b"llama.block_count", 4, struct.pack("<I", LAYERS + 1)
    ),
    "a huge width": lambda good: overwrite_after(
        good, b"llama.embedding_length", 4, struct.pack("<I", 2**31)
    ),
    "a huge inner width": lambda good: overwrite_after(
        good, b"llama.feed_forward_length", 4, struct.pack("<I", 2**31)
    ),
    "a huge vocabulary": lambda good: overwrite_after(good, b"llama.vocab_size", 4, struct.pack("<I", 2**31)),
    "a billion heads": lambda good: overwrite_after(
        good, b"llama.attention.head_count", 4, struct.pack("<I", 10**9)
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_inconsistent_header_is_refused(tmp_path, monkeypatch, good, lie):
    content = LIES[lie](good)
    assert content != good
    with pytest.raises(ValueError):
        read_checked_header(tmp_path, content)
    monkeypatch.setenv("LORATUNE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "some.gguf"
    with enforce_deadline(), pytest.raises(UserError) as refused:
        resolve_model(str(path))
    assert str(refused.value).startswith(f"model={path}: cannot be read as a GGUF model: ")
    assert not list((tmp_path / "cache").glob("*"))


def check_any_change(folder: Path, good: bytes, changes) -> None:
    content = bytearray(good)
    for at, change in changes:
        content[at % len(content) : at % len(content) + len(change)] = change
    try:
        header = read_checked_header(folder, bytes(content))
    except ValueError:
        return
    # What is accepted here, the package reads without more than the file holds.
    with enforce_deadline():
        try:
            theirs = GGUFReader(folder / "some.gguf")
        except ValueError:  # it refuses some that are harmless, such as two of its own names
            return
        except KeyError:
            return
    assert {tensor.name for tensor in theirs.tensors} == set(header.tensors)
    assert sum(tensor.n_bytes for tensor in theirs.tensors) <= len(content)


CHANGES = st.lists(
    st.tuples(
        st.integers(0, 700) | st.integers(0, 2000),
        st.binary(min_size=1, max_size=8)
        | st.sampled_from([HUGE, struct.pack("<I", 9), struct.pack("<Q", 5)]),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("count", [100, pytest.param(5000, marks=pytest.mark.slow)])
def test_corrupted_file_never_hangs_the_reader(tmp_path, good, count):
    run = settings(max_examples=count, deadline=None, database=None)(
        given(CHANGES)(lambda changes: check_any_change(tmp_path, good, changes))
    )
    run()


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_random_bytes_raise_value_error(tmp_path_factory, content):
    with pytest.raises(ValueError):
        read_checked_header(tmp_path_factory.mktemp("gguf"), b"GGUF\x03\x00\x00\x00" + content)
