"""One column of a store, of all its shards one after the other: rows by their numbers, whatever they lie on.

A column that fits the memory is mapped: the system keeps what is read, and a row is there when it is touched. One
that does not, or lies elsewhere, is read in ranges, many at once: neighbouring rows are one range.
"""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from numpy import ndarray
from torch import Tensor
from torch.nn.functional import embedding_bag

from vesalius.store.folder import Folder, LocalFolder
from vesalius.store.shard import Column

AVAILABLE = Path("/proc/meminfo")


class Mapped:
    """A column that is read as memory."""

    def __init__(self, folder: LocalFolder, files: Sequence[tuple[str, Column]]) -> None:
        self.starts = _starts(files)
        self.parts = [_mapped(folder.path / name, column) for name, column in files]
        self.width = files[0][1].shape[1:]

    def ascending(self, rows: Int[ndarray, " row"]) -> Float[Tensor, "row *width"]:
        """The rows of these numbers, of which none is less than the one before it, in single precision."""
        ends = [*rows.searchsorted(self.starts[1:]).tolist(), len(rows)]
        out = torch.empty(len(rows), *self.width)
        for part, start, first, last in zip(self.parts, self.starts, [0, *ends], ends):
            if first < last:
                out[first:last] = _gathered(part, torch.from_numpy(rows[first:last] - start))
        return out

    def stretch(self, first: int, last: int) -> Shaped[Tensor, "row *width"]:
        """The rows from one number to another."""
        pieces = [
            part[max(first - start, 0) : max(last - start, 0)] for part, start in zip(self.parts, self.starts)
        ]
        whole = [piece for piece in pieces if len(piece)] or pieces[:1]
        return whole[0] if len(whole) == 1 else torch.cat(whole)


class Ranged:
    """A column that is read in ranges of bytes."""

    def __init__(self, folder: Folder, files: Sequence[tuple[str, Column]]) -> None:
        self.folder, self.files, self.starts = folder, files, _starts(files)
        self.dtype, self.width = files[0][1].dtype, files[0][1].shape[1:]
        self.row = int(np.prod(self.width, dtype=np.int64)) * self.dtype.itemsize

    def take(self, rows: Int[ndarray, " row"]) -> Shaped[Tensor, "row *width"]:
        """The rows of these numbers, in their order."""
        order = rows.argsort()
        found = self.ascending(rows[order])
        out = torch.empty_like(found)
        return out.index_copy_(0, torch.from_numpy(order), found)

    def stretch(self, first: int, last: int) -> Shaped[Tensor, "row *width"]:
        """The rows from one number to another."""
        return self.ascending(np.arange(first, last))

    def ascending(self, rows: Int[ndarray, " row"]) -> Shaped[Tensor, "row *width"]:
        """The rows of these numbers, of which none is less than the one before it."""
        shards = shard_of(rows, self.starts)
        ends = np.flatnonzero((np.diff(rows) != 1) | (np.diff(shards) != 0)) + 1
        wanted = []
        for run in np.split(np.arange(len(rows)), ends) if len(rows) else ():
            shard = int(shards[run[0]])
            (name, column), start = self.files[shard], int(self.starts[shard])
            first = column.first + (int(rows[run[0]]) - start) * self.row
            wanted.append((name, first, first + len(run) * self.row))
        data = bytearray(b"".join(self.folder.ranges(wanted))) if wanted else bytearray()
        if not data:
            return torch.empty(len(rows), *self.width, dtype=self.dtype)
        return torch.frombuffer(data, dtype=self.dtype).view(len(rows), *self.width)


def open_column(folder: Folder, files: Sequence[tuple[str, Column]], *, mapped: bool) -> Mapped | Ranged:
    """The column that lies in these files."""
    return Mapped(folder, files) if mapped and isinstance(folder, LocalFolder) else Ranged(folder, files)


def shard_of(rows: Int[ndarray, " row"], starts: Int[ndarray, " shard"]) -> Int[ndarray, " row"]:
    """In which shard each row lies."""
    return np.searchsorted(starts, rows, side="right") - 1


def available() -> int:
    """Bytes of memory that are free, or used only to keep files."""
    if not AVAILABLE.exists():
        return 0
    line = next(line for line in AVAILABLE.read_text().splitlines() if line.startswith("MemAvailable"))
    return 1024 * int(line.split()[1])


def _starts(files: Sequence[tuple[str, Column]]) -> Int[ndarray, " shard"]:
    return np.array(list(accumulate((column.shape[0] for _, column in files), initial=0))[:-1])


def _gathered(
    part: Shaped[Tensor, "stored *width"], rows: Int[Tensor, " row"]
) -> Shaped[Tensor, "row *width"]:
    """Rows by their numbers; as sums of one each where there are sums, whose routine asks for a row before its turn."""
    if part.ndim != 2 or not part.is_floating_point():
        return part.index_select(0, rows)
    return embedding_bag(rows[:, None], part, mode="sum")


def _mapped(path: Path, column: Column) -> Shaped[Tensor, "row *width"]:
    if column.first == column.last:
        return torch.empty(column.shape, dtype=column.dtype)
    data = np.memmap(path, np.uint8, "c", offset=column.first, shape=column.last - column.first)
    return torch.from_numpy(data).view(column.dtype).view(column.shape)
