"""One column of a store, of all its shards one after the other: rows by their numbers, whatever they lie on.

A column that fits the memory is mapped: the system keeps what is read, and a row is there when it is touched. One
that does not, or lies elsewhere, is read in ranges, many at once: neighbouring rows are one range.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import prod
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from numpy import ndarray
from torch import Tensor

from vesalius.store.folder import Folder, LocalFolder
from vesalius.store.order import Runs, one
from vesalius.store.shard import Column

AVAILABLE = Path("/proc/meminfo")


class Mapped:
    """A column that is read as memory."""

    def __init__(self, folder: LocalFolder, files: Sequence[tuple[str, Column]]) -> None:
        self.starts, self.width = _starts(files), files[0][1].shape[1:]
        self.parts = [_mapped(folder.path / name, column) for name, column in files]
        self.files, self.cold = (
            [(folder.path / name, column) for name, column in files],
            sys.platform == "linux",
        )
        self.row = prod(self.width) * files[0][1].dtype.itemsize

    def floats(self, runs: Runs) -> Float[Tensor, "row *width"]:
        """The numbers of some runs, one after the other, in single precision: read, turned and written at once."""
        out, at, before = torch.empty(int(runs.counts.sum()), *self.width), 0, _fetched()
        pieces = list(_pieces(runs, self.starts))
        if self.cold:
            self._ask(pieces)
        for shard, first, last in pieces:
            out[at : at + last - first] = self.parts[shard][first:last]
            at += last - first
        self.cold = _fetched() > before
        return out

    def _ask(self, pieces: list[tuple[int, int, int]]) -> None:
        """Have the system read these from the disk, all at once; it waits for each page by itself otherwise."""
        for shard, first, last in pieces:
            path, column = self.files[shard]
            with path.open("rb") as file:
                length = (last - first) * self.row
                os.posix_fadvise(
                    file.fileno(), column.first + first * self.row, length, os.POSIX_FADV_WILLNEED
                )


class Ranged:
    """A column that is read in ranges of bytes."""

    def __init__(self, folder: Folder, files: Sequence[tuple[str, Column]]) -> None:
        self.folder, self.files, self.starts = folder, files, _starts(files)
        self.dtype, self.width = files[0][1].dtype, files[0][1].shape[1:]
        self.row = prod(self.width) * self.dtype.itemsize

    def floats(self, runs: Runs) -> Float[Tensor, "row *width"]:
        """The numbers of some runs, one after the other, in single precision."""
        return self.read(runs).float()

    def read(self, runs: Runs) -> Shaped[Tensor, "row *width"]:
        """The rows of some runs, one after the other, as they are stored."""
        wanted = []
        for shard, first, last in _pieces(runs, self.starts):
            name, column = self.files[shard]
            wanted.append((name, column.first + first * self.row, column.first + last * self.row))
        data = bytearray().join(self.folder.ranges(wanted)) if wanted else bytearray()
        if not data:
            return torch.empty(int(runs.counts.sum()), *self.width, dtype=self.dtype)
        return torch.frombuffer(data, dtype=self.dtype).view(-1, *self.width)

    def stretch(self, first: int, last: int) -> Shaped[Tensor, "row *width"]:
        """The rows from one number to another."""
        return self.read(one(first, last))

    def ascending(self, rows: Int[ndarray, " row"]) -> Shaped[Tensor, "row *width"]:
        """The rows of these numbers, of which none is less than the one before it."""
        begins = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        return self.read(Runs(rows[begins], np.diff(begins, append=len(rows))))

    def take(self, rows: Int[ndarray, " row"]) -> Shaped[Tensor, "row *width"]:
        """The rows of these numbers, in their order."""
        order = rows.argsort()
        found = self.ascending(rows[order])
        return torch.empty_like(found).index_copy_(0, torch.from_numpy(order), found)


def open_column(folder: Folder, files: Sequence[tuple[str, Column]], *, mapped: bool) -> Mapped | Ranged:
    """The column that lies in these files."""
    return Mapped(folder, files) if mapped and isinstance(folder, LocalFolder) else Ranged(folder, files)


def available() -> int:
    """Bytes of memory that are free, or used only to keep files."""
    if not AVAILABLE.exists():
        return 0
    line = next(line for line in AVAILABLE.read_text().splitlines() if line.startswith("MemAvailable"))
    return 1024 * int(line.split()[1])


def _fetched() -> int:
    """How much this process has had read from a disk; 0 where the system does not say."""
    if sys.platform != "linux":
        return 0
    from resource import RUSAGE_SELF, getrusage

    return getrusage(RUSAGE_SELF).ru_inblock


def _starts(files: Sequence[tuple[str, Column]]) -> Int[ndarray, " shard"]:
    return np.array(list(accumulate((column.shape[0] for _, column in files), initial=0))[:-1])


def _pieces(runs: Runs, starts: Int[ndarray, " shard"]) -> Iterator[tuple[int, int, int]]:
    """The runs as stretches that do not leave their shard: its number, and its rows from one to another."""
    shards, begins = starts.searchsorted(runs.firsts, side="right") - 1, starts.tolist()
    for shard, first, count in zip(shards.tolist(), runs.firsts.tolist(), runs.counts.tolist()):
        last = first + count
        while first < last:
            begin = begins[shard]
            stop = min(last, begins[shard + 1]) if shard + 1 < len(begins) else last
            yield shard, first - begin, stop - begin
            first, shard = stop, shard + 1


def _mapped(path: Path, column: Column) -> Shaped[Tensor, "row *width"]:
    if column.first == column.last:
        return torch.empty(column.shape, dtype=column.dtype)
    data = np.memmap(path, np.uint8, "c", offset=column.first, shape=column.last - column.first)
    return torch.from_numpy(data).view(column.dtype).view(column.shape)
