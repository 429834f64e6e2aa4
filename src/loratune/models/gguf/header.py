"""Read a GGUF file's header, checking each length, count, type and offset before it is used.

The package `gguf` trusts the file: an array length beyond the end of the file makes it run, and allocate
memory, for ever. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
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
MAX_HEADS_RATIO = 16  # the most that the heads' total size may be, as a multiple of the hidden size


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor is in the file."""

    name: str
    shape: tuple[int, ...]  # the fastest dimension first, as in the file
    start: int  # byte offset from the end of the header
    end: int


@dataclass(frozen=True)
class GgufHeader:
    """The metadata of a GGUF file, and its tensors by name."""

    values: dict[str, Any]  # numbers and strings; None for arrays
    tensors: dict[str, GgufTensor]


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check the header.

    Raises:
        ValueError: something in it does not fit the file, or contradicts the rest; the message says where.
    """
    with open_regular_file(path) as file:
        if path.stat().st_size < len(MAGIC):
            raise ValueError("it is too short")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return GgufReader(content).read_header()


class GgufReader:
    """Reads the values of a GGUF header, one after another."""

    def __init__(self, content: mmap.mmap):
        self.content = content
        self.offset = 0

    def read_header(self) -> GgufHeader:
        """Read the whole header and check that the tensors fit into the file."""
        if self.read_bytes(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        if (version := self.read_number("I")) not in VERSIONS:
            raise ValueError(
                f"version {version} is unknown; known are {', '.join(map(str, VERSIONS))}, in little-endian "
                "order"
            )
        tensor_count, value_count = self.read_number("Q"), self.read_number("Q")
        values: dict[str, Any] = {}
        for _ in range(value_count):
            name = self.read_string()
            if name in values:
                raise ValueError(f"{name!r} occurs twice")
            values[name] = self.read_value(self.read_number("I"))
        alignment = values.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"general.alignment: {alignment!r} is not a power of two")
        tensors: dict[str, GgufTensor] = {}
        for _ in range(tensor_count):
            tensor = self.read_tensor_info(alignment)
            if tensor.name in tensors:
                raise ValueError(f"the tensor {tensor.name!r} occurs twice")
            tensors[tensor.name] = tensor
        self.check_tensor_bounds(tensors, -self.offset % alignment + self.offset)
        return GgufHeader(values, tensors)

    def read_bytes(self, count: int) -> bytes:
        remaining = len(self.content) - self.offset
        if count > remaining:
            raise ValueError(f"at byte {self.offset:,}: {count:,} bytes are needed, {remaining:,} are left")
        self.offset += count
        return self.content[self.offset - count : self.offset]

    def read_number(self, format_character: str) -> Any:
        layout = f"<{format_character}"
        return struct.unpack(layout, self.read_bytes(struct.calcsize(layout)))[0]

    def read_string(self) -> str:
        return self.read_bytes(self.read_number("Q")).decode("utf-8")

    def read_value(self, value_type: int) -> Any:
        """Read a number or a string; skip an array and return None."""
        if value_type in SCALAR_FORMATS:
            return self.read_number(SCALAR_FORMATS[value_type])
        if value_type == STRING:
            return self.read_string()
        if value_type != ARRAY:
            raise ValueError(f"at byte {self.offset:,}: {value_type} is not a type of values")
        element_type, count = self.read_number("I"), self.read_number("Q")
        if element_type in SCALAR_FORMATS:
            self.read_bytes(count * struct.calcsize(f"<{SCALAR_FORMATS[element_type]}"))
        elif element_type == STRING:
            for _ in range(count):
                self.read_string()
        else:  # the format allows arrays of arrays, but no model has them
            raise ValueError(f"at byte {self.offset:,}: {element_type} is not a type of array elements")
        return None

    def read_tensor_info(self, alignment: int) -> GgufTensor:
        """Read a tensor's name, shape, type and offset."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        name, dimensions = self.read_string(), self.read_number("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise ValueError(
                f"the tensor {name!r} has {dimensions:,} dimensions; there can be 1 to {MAX_DIMENSIONS}"
            )
        shape = tuple(self.read_number("Q") for _ in range(dimensions))
        tensor_type, start = self.read_number("I"), self.read_number("Q")
        if tensor_type not in set(GGMLQuantizationType):
            raise ValueError(f"the tensor {name!r} is of an unknown type, {tensor_type}")
        block_elements, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor_type)]
        if 0 in shape or shape[0] % block_elements or start % alignment:
            raise ValueError(
                f"the tensor {name!r} of shape {shape} at byte {start:,} does not fit its type or the "
                "alignment"
            )
        return GgufTensor(name, shape, start, start + math.prod(shape) // block_elements * block_bytes)

    def check_tensor_bounds(self, tensors: dict[str, GgufTensor], data_start: int) -> None:
        """Raise ValueError if tensors overlap, or end after the file, whose data begin at `data_start`."""
        in_order = sorted(tensors.values(), key=lambda tensor: tensor.start)
        for tensor in in_order:
            if data_start + tensor.end > len(self.content):
                raise ValueError(
                    f"the tensor {tensor.name!r} ends at byte {data_start + tensor.end:,} of "
                    f"{len(self.content):,}"
                )
        for tensor, following in pairwise(in_order):
            if tensor.end > following.start:
                raise ValueError(f"the tensors {tensor.name!r} and {following.name!r} overlap")


def check_gguf_sizes(header: GgufHeader) -> None:
    """Raise ValueError unless the tensors have the sizes in the metadata, by which memory is allocated."""
    architecture = header.values.get("general.architecture")

    def get_size(name: str, default: int | None = None) -> int:
        value = header.values.get(f"{architecture}.{name}", default)
        if type(value) is not int or value < 1:
            raise ValueError(f"{architecture}.{name} must be a whole number above 0")
        return value

    hidden_size, layers = get_size("embedding_length"), get_size("block_count")
    heads = get_size("attention.head_count")
    if layers > len(header.tensors):
        raise ValueError(
            f"{architecture}.block_count is {layers:,}, but there are {len(header.tensors):,} tensors"
        )
    row_lengths = {"token_embd.weight": hidden_size}
    row_lengths |= {
        f"blk.{number}.ffn_down.weight": get_size("feed_forward_length") for number in range(layers)
    }
    for name, length in row_lengths.items():
        if name not in header.tensors or header.tensors[name].shape[0] != length:
            raise ValueError(
                f"there is no tensor {name!r} with rows of {length:,} elements, as in the metadata"
            )
    vocab_size = header.tensors["token_embd.weight"].shape[-1]
    if get_size("vocab_size", vocab_size) != vocab_size:
        raise ValueError(
            f"{architecture}.vocab_size is not {vocab_size:,}, the number of rows of token_embd.weight"
        )
    head_dims = [
        get_size(f"attention.{name}_length", math.ceil(hidden_size / heads)) for name in ("key", "value")
    ]
    most_heads = max(heads, get_size("attention.head_count_kv", heads))
    if most_heads * max(head_dims) > MAX_HEADS_RATIO * hidden_size:
        raise ValueError(
            f"{architecture}.attention: {most_heads:,} heads of size {max(head_dims):,} are too many for a "
            f"hidden size of {hidden_size:,}"
        )
