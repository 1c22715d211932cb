"""One shard: a file of columns, of the same rows each, as safetensors lays them out, so that anything reads it.

The header is padded with spaces to `ALIGNMENT`, columns of wider numbers come first, and the header holds the sha256
of all that follows: a file says by itself whether it is whole. The same columns always make the same bytes.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vesalius.errors import VesaliusError
from vesalius.store.folder import Folder

ALIGNMENT = 4096
PIECE = 1 << 24
CODES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int8: "I8",
    torch.int32: "I32", torch.int64: "I64", torch.float64: "F64", torch.bool: "BOOL",
}  # fmt: skip
DTYPES = {code: dtype for dtype, code in CODES.items()}


@dataclass(frozen=True)
class Column:
    """Where a column lies in its file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    first: int
    last: int


@dataclass(frozen=True)
class Header:
    """What a shard holds, and the sha256 that its columns must have."""

    columns: dict[str, Column]
    metadata: dict[str, str]
    first: int
    """Where the columns begin."""

    @property
    def last(self) -> int:
        """How long the file is."""
        return max((column.last for column in self.columns.values()), default=self.first)


def write_shard(folder: Folder, name: str, columns: Mapping[str, Tensor], *, about: Mapping[str, str]) -> str:
    """Write columns as one file and return the sha256 of what follows its header; `about` stands in the header."""
    ordered = sorted(columns.items(), key=lambda item: -item[1].dtype.itemsize)
    payload = [_bytes(tensor) for _, tensor in ordered]
    digest = hashlib.sha256()
    for part in payload:
        digest.update(part)
    described: dict = {"__metadata__": {**about, "sha256": digest.hexdigest()}}
    place = 0
    for (label, tensor), part in zip(ordered, payload):
        offsets = [place, place := place + part.nbytes]
        described[label] = {
            "dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets,
        }  # fmt: skip
    text = json.dumps(described, separators=(",", ":")).encode()
    text = text.ljust(-(-(len(text) + 8) // ALIGNMENT) * ALIGNMENT - 8)
    folder.write(name, [len(text).to_bytes(8, "little"), text, *payload])
    return digest.hexdigest()


def read_header(folder: Folder, name: str) -> Header:
    """What a file holds. Raises VesaliusError if it is no shard, or shorter or longer than it says."""
    size = folder.size(name)
    start = folder.ranges([(name, 0, min(size, ALIGNMENT))])[0]
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or not 2 <= length <= size - 8:
        raise VesaliusError(f"'{name}' in '{folder.place}' is truncated or is not a shard")
    text = start[8 : 8 + length]
    if len(text) < length:
        text += folder.ranges([(name, len(start), 8 + length)])[0]
    try:
        header = _parsed(json.loads(text), 8 + length)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise VesaliusError(f"the header of '{name}' in '{folder.place}' is damaged") from None
    if header.last != size:
        raise VesaliusError(
            f"'{name}' in '{folder.place}' has {size:,} bytes; its header says {header.last:,}"
        )
    return header


def check_shard(folder: Folder, name: str) -> Header:
    """Read a whole file and compare it with its sha256; raises VesaliusError if it is not what was written."""
    header, digest = read_header(folder, name), hashlib.sha256()
    for first in range(header.first, header.last, PIECE):
        digest.update(folder.ranges([(name, first, min(first + PIECE, header.last))])[0])
    if digest.hexdigest() != header.metadata.get("sha256"):
        raise VesaliusError(f"'{name}' in '{folder.place}' is damaged: its bytes have another sha256")
    return header


def read_columns(folder: Folder, name: str, labels: list[str] | None = None) -> dict[str, Tensor]:
    """Some columns of a file, or all of them, as tensors of their own."""
    header = read_header(folder, name)
    chosen = {label: header.columns[label] for label in (header.columns if labels is None else labels)}
    parts = folder.ranges([(name, column.first, column.last) for column in chosen.values()])
    return {
        label: torch.frombuffer(bytearray(part), dtype=column.dtype).view(column.shape)
        if part
        else torch.empty(column.shape, dtype=column.dtype)
        for (label, column), part in zip(chosen.items(), parts)
    }


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def _parsed(described: dict, start: int) -> Header:
    metadata = described.pop("__metadata__", {})
    columns = {}
    for label, entry in described.items():
        first, last = entry["data_offsets"]
        columns[label] = Column(DTYPES[entry["dtype"]], tuple(entry["shape"]), start + first, start + last)
    return Header(columns, metadata, start)
