"""The container of llama.cpp: a header of typed metadata, then tensors, most of them quantised in blocks.

The layout is that of ggml's specification (docs/gguf.md), versions 2 and 3, little-endian. Reading the header
here takes a tenth of a second where a general reader, which makes an array of every token's bytes, takes
seconds.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vesalius.errors import VesaliusError

NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
ALIGNMENT = "general.alignment"


@dataclass(frozen=True)
class Entry:
    """One stored tensor: its axes in torch's order, the code of its block format, and where it begins."""

    shape: tuple[int, ...]
    kind: int
    start: int


@dataclass(frozen=True)
class GGUFFile:
    """The metadata of an open file, its tensors by name, and the bytes they lie in."""

    name: str
    metadata: dict[str, Any]
    entries: dict[str, Entry]
    data: mmap.mmap

    def tensor(self, name: str) -> Tensor:
        """One tensor in float32, its blocks expanded."""
        import gguf

        entry = self.entries[name]
        kind = gguf.GGMLQuantizationType(entry.kind)
        raw = np.frombuffer(self.data, np.uint8, block_bytes(entry), entry.start)
        rows = raw.reshape(*entry.shape[:-1], -1)
        if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
            rows = rows.view(np.float32 if kind == gguf.GGMLQuantizationType.F32 else np.float16)
        values = gguf.quants.dequantize(rows, kind)
        return torch.from_numpy(np.array(values, dtype=np.float32))


def open_gguf(path: Path) -> GGUFFile:
    """Read the header of a file and map the rest.

    Raises VesaliusError if the file is missing, not GGUF, cut short, or in a block format that cannot be
    expanded.
    """
    try:
        import gguf
    except ImportError:
        raise VesaliusError(
            "a .gguf file needs the gguf package; install it with pip install 'vesalius[gguf]'"
        ) from None
    if not path.is_file():
        raise VesaliusError(f"There is no file {path}; expected a .gguf file.")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise VesaliusError(
                f"{path.name} does not begin with 'GGUF'; expected a file written for llama.cpp."
            )
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        metadata, entries = read_header(data)
    except (struct.error, IndexError, UnicodeDecodeError, OverflowError, KeyError):
        raise VesaliusError(
            f"the header of {path.name} is damaged or cut short; fetch the file again."
        ) from None
    for name, entry in entries.items():
        if entry.kind not in set(gguf.GGMLQuantizationType):
            raise VesaliusError(f"tensor '{name}' of {path.name} has the unknown block format {entry.kind}.")
        missing = entry.start + block_bytes(entry) - len(data)
        if missing > 0:
            raise VesaliusError(
                f"{path.name} is cut short: tensor '{name}' lacks {missing:,} bytes; fetch the file again."
            )
    return GGUFFile(path.name, metadata, entries, data)


def read_header(data: mmap.mmap) -> tuple[dict[str, Any], dict[str, Entry]]:
    """Metadata and the table of tensors."""
    header = Header(data)
    version, n_tensors, n_values = header.number("I"), header.number("Q"), header.number("Q")
    if version not in (2, 3):
        raise VesaliusError(f"the GGUF version is {version}; expected 2 or 3.")
    metadata = {}
    for _ in range(n_values):
        key = header.string()
        metadata[key] = header.value(header.number("I"))
    table = []
    for _ in range(n_tensors):
        name = header.string()
        shape = header.numbers("Q", header.number("I"))[::-1]
        table.append((name, shape, header.number("I"), header.number("Q")))
    step = metadata.get(ALIGNMENT, 32)
    first = math.ceil(header.at / step) * step
    return metadata, {name: Entry(shape, kind, first + offset) for name, shape, kind, offset in table}


class Header:
    """A position in the bytes of a header, and how to read on from it."""

    def __init__(self, data: mmap.mmap):
        self.data = data
        self.at = 4

    def numbers(self, code: str, count: int) -> tuple:
        form = f"<{count}{code}"
        found = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return found

    def number(self, code: str) -> Any:
        return self.numbers(code, 1)[0]

    def string(self) -> str:
        length = self.number("Q")
        if self.at + length > len(self.data):
            raise IndexError
        self.at += length
        return self.data[self.at - length : self.at].decode()

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.number(NUMBERS[kind])
        kind, count = self.number("I"), self.number("Q")
        if kind in NUMBERS:
            return list(self.numbers(NUMBERS[kind], count))
        return [self.value(kind) for _ in range(count)]


def block_bytes(entry: Entry) -> int:
    """How many bytes a tensor takes."""
    import gguf

    per_block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(entry.kind)]
    return math.prod(entry.shape) // per_block * size
