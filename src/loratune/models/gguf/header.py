"""A GGUF file's header, read with distrust: each length, count, type and offset in it is checked before it is
used.

The package `gguf` maps the file and believes it: a number of array elements that the file does not hold keeps
it busy, and taking memory, for ever. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from loratune.system.read import open_regular_file

MAGIC, VERSIONS, ALIGNMENT = b"GGUF", (2, 3), 32
SCALAR_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MAX_DIMENSIONS = 4
MAX_HEADS_RATIO = 16  # how many times as wide as the model its attention heads may be together


@dataclass(frozen=True)
class GgufTensor:
    name: str
    shape: tuple[int, ...]  # the fastest dimension first, as in the file
    start: int  # bytes after the header
    end: int


@dataclass(frozen=True)
class GgufHeader:
    values: dict[str, Any]  # single numbers and texts; None for lists
    tensors: dict[str, GgufTensor]


def read_gguf_header(path: Path) -> GgufHeader:
    """Raises ValueError, with the place, for whatever does not fit in the file or in itself."""
    with open_regular_file(path) as file:
        if path.stat().st_size < len(MAGIC):
            raise ValueError("it is too short")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return GgufReader(content).header()


class GgufReader:
    def __init__(self, content: mmap.mmap):
        self.content = content
        self.place = 0

    def header(self) -> GgufHeader:
        if self.take(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        if (version := self.number("I")) not in VERSIONS:
            raise ValueError(
                f"version {version} is unknown; known are {', '.join(map(str, VERSIONS))}, in little-endian "
                "order"
            )
        tensor_count, value_count = self.number("Q"), self.number("Q")
        values: dict[str, Any] = {}
        for _ in range(value_count):
            name = self.text()
            if name in values:
                raise ValueError(f"{name!r} stands there twice")
            values[name] = self.value(self.number("I"))
        alignment = values.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"general.alignment: {alignment!r} is no power of two")
        tensors: dict[str, GgufTensor] = {}
        for _ in range(tensor_count):
            tensor = self.tensor(alignment)
            if tensor.name in tensors:
                raise ValueError(f"the tensor {tensor.name!r} stands there twice")
            tensors[tensor.name] = tensor
        self.check_tensor_bounds(tensors, -self.place % alignment + self.place)
        return GgufHeader(values, tensors)

    def take(self, count: int) -> bytes:
        left = len(self.content) - self.place
        if count > left:
            raise ValueError(f"at byte {self.place:,} it needs {count:,} bytes more, and has {left:,}")
        self.place += count
        return self.content[self.place - count : self.place]

    def number(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind in SCALAR_FORMATS:
            return self.number(SCALAR_FORMATS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise ValueError(f"at byte {self.place:,}: {kind} is no type of a value")
        inner, count = self.number("I"), self.number("Q")
        if inner in SCALAR_FORMATS:
            self.take(count * struct.calcsize(f"<{SCALAR_FORMATS[inner]}"))
        elif inner == STRING:
            for _ in range(count):
                self.text()
        else:  # lists of lists are allowed by the format, but no model has them
            raise ValueError(f"at byte {self.place:,}: {inner} is no type of a list's elements")
        return None

    def tensor(self, alignment: int) -> GgufTensor:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        name, dimensions = self.text(), self.number("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise ValueError(
                f"the tensor {name!r} has {dimensions:,} dimensions; there can be 1 to {MAX_DIMENSIONS}"
            )
        shape = tuple(self.number("Q") for _ in range(dimensions))
        kind, start = self.number("I"), self.number("Q")
        if kind not in set(GGMLQuantizationType):
            raise ValueError(f"the tensor {name!r} is of an unknown type, {kind}")
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        if 0 in shape or shape[0] % block or start % alignment:
            raise ValueError(
                f"the tensor {name!r} of shape {shape} at byte {start:,} does not fit its type or the "
                "alignment"
            )
        return GgufTensor(name, shape, start, start + math.prod(shape) // block * size)

    def check_tensor_bounds(self, tensors: dict[str, GgufTensor], data: int) -> None:
        placed = sorted(tensors.values(), key=lambda tensor: tensor.start)
        for tensor in placed:
            if data + tensor.end > len(self.content):
                raise ValueError(
                    f"the tensor {tensor.name!r} ends at byte {data + tensor.end:,} of {len(self.content):,}"
                )
        for one, other in pairwise(placed):
            if one.end > other.start:
                raise ValueError(f"the tensors {one.name!r} and {other.name!r} overlap")


def check_gguf_sizes(header: GgufHeader) -> None:
    """Raises ValueError unless the tensors have the sizes that the header tells: room is made for what it
    tells.
    """
    architecture = header.values.get("general.architecture")

    def told(name: str, default: int | None = None) -> int:
        value = header.values.get(f"{architecture}.{name}", default)
        if type(value) is not int or value < 1:
            raise ValueError(f"{architecture}.{name} must be a whole number above 0")
        return value

    width, layers, heads = told("embedding_length"), told("block_count"), told("attention.head_count")
    needed = {"token_embd.weight": width}
    if layers > len(header.tensors):
        raise ValueError(
            f"{architecture}.block_count is {layers:,}, and there are {len(header.tensors):,} tensors"
        )
    needed |= {f"blk.{number}.ffn_down.weight": told("feed_forward_length") for number in range(layers)}
    for name, wanted in needed.items():
        if name not in header.tensors or header.tensors[name].shape[0] != wanted:
            raise ValueError(
                f"there is no tensor {name!r} with rows of {wanted:,} numbers, as the header tells"
            )
    rows = header.tensors["token_embd.weight"].shape[-1]
    if told("vocab_size", rows) != rows:
        raise ValueError(
            f"{architecture}.vocab_size is not {rows:,}, the number of rows of token_embd.weight"
        )
    lengths = [told(f"attention.{name}_length", math.ceil(width / heads)) for name in ("key", "value")]
    if max(heads, told("attention.head_count_kv", heads)) * max(lengths) > MAX_HEADS_RATIO * width:
        raise ValueError(
            f"{architecture}.attention: {heads:,} heads of {max(lengths):,} numbers are no size for a width "
            f"of {width:,}"
        )
