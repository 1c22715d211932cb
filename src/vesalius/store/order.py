"""In which order rows are read: shuffled, and yet known for any place without the places before it.

1. An epoch turns the rows by a random number of places, so that no row is always the last.
2. It cuts them into blocks of `BLOCK` neighbours, which a disk reads at once, and permutes the blocks.
3. Each of `world` ranks takes an equal share of that sequence and cuts it into pools.
4. Within a pool the rows are permuted: this is how far rows are mixed beyond what the blocks are.

Blocks are permuted by a Feistel network over the bits of their number (Luby and Rackoff 1988), walked on until it
lands inside (Black and Rogaway 2002), of which any part can be had alone, also of 10^11 rows; the rows of a pool by
a list of them. So there is no state to keep, and a run that was stopped goes on with the same rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int, UInt64
from numpy import ndarray

from vesalius.errors import VesaliusError

BLOCK = 256
"""Neighbouring rows that are read at once."""
POOL = 65_536
"""Rows that are mixed with each other, unless another number is asked for."""
ROUNDS = 6


@dataclass(frozen=True)
class Pool:
    """Rows that are mixed with each other: which pool of which epoch of one rank, and where it lies in its share."""

    epoch: int
    number: int
    first: int
    rows: int


@dataclass(frozen=True)
class Order:
    """The endless sequence of rows that one rank sees: each row of its share once, then the next epoch.

    Over all ranks each row comes exactly once in an epoch.

    >>> order = Order(6, seed=1)
    >>> order.at(0, 6).tolist(), order.at(6, 6).tolist(), order.at(4, 4).tolist()
    ([4, 3, 1, 5, 0, 2], [5, 3, 4, 0, 1, 2], [0, 2, 5, 3])
    """

    rows: int
    seed: int = 0
    rank: int = 0
    world: int = 1
    pool: int = POOL

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world <= self.rows or self.pool < 1:
            raise VesaliusError(
                f"rank {self.rank} of {self.world} with a pool of {self.pool} was asked for {self.rows} rows; "
                "expected a rank below their number, a row for each and a pool of at least 1"
            )

    @property
    def share(self) -> tuple[int, int]:
        """Which stretch of an epoch is this rank's."""
        return self.rank * self.rows // self.world, (self.rank + 1) * self.rows // self.world

    @property
    def pools(self) -> int:
        """How many pools an epoch of this rank has; none is smaller than `pool`, but where all rows are fewer."""
        first, last = self.share
        return max(1, (last - first) // self.pool)

    def at(self, first: int, count: int) -> Int[ndarray, " row"]:
        """The rows at `count` places from `first` on."""
        parts = [self.within(pool)[start:stop] for pool, start, stop in self.pieces(first, count)]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def pieces(self, first: int, count: int) -> Iterator[tuple[Pool, int, int]]:
        """The pools that some places fall in, each with the places `start` to `stop` within it."""
        low, high = self.share
        length, pools, last = high - low, self.pools, first + count
        while first < last:
            epoch, place = divmod(first, length)
            number = ((place + 1) * pools - 1) // length
            begin, end = number * length // pools, (number + 1) * length // pools
            stop = min(end, place + last - first)
            yield Pool(epoch, number, begin, end - begin), place - begin, stop - begin
            first += stop - place

    def after(self, pool: Pool) -> Pool:
        """The pool that follows."""
        low, high = self.share
        return next(self.pieces(pool.epoch * (high - low) + pool.first + pool.rows, 1))[0]

    def within(self, pool: Pool) -> Int[ndarray, " row"]:
        """The rows of a pool, in the order in which they come."""
        return _within(self, pool)

    def key(self, *numbers: int) -> int:
        state = np.array([self.seed % 2**64], np.uint64)
        for number in (len(numbers), *numbers):
            state = _mixed(state ^ np.uint64(number % 2**64))
        return int(state[0] >> np.uint64(1))


@lru_cache(maxsize=8)
def _within(order: Order, pool: Pool) -> Int[ndarray, " row"]:
    """What is left of the rows after whole blocks stays where it is, which the turn makes any place of an epoch."""
    key = order.key(pool.epoch, order.rank, pool.number) >> 1
    inner = torch.randperm(pool.rows, generator=torch.Generator().manual_seed(key)).numpy()
    turned = order.share[0] + pool.first + order.key(pool.epoch, 0) % order.rows
    lying = (turned + np.arange(pool.rows)) % order.rows
    block = lying // BLOCK
    begins = np.diff(block, prepend=-1) != 0
    moved, blocks = block[begins], order.rows // BLOCK
    complete = moved < blocks
    moved[complete] = permuted(moved[complete], max(blocks, 1), key=order.key(pool.epoch, 1))
    return (lying + BLOCK * (moved - block[begins])[begins.cumsum() - 1])[inner]


def permuted(places: Int[ndarray, " place"], size: int, *, key: int) -> Int[ndarray, " place"]:
    """Where a permutation of 0 … `size`-1 sends some places; another permutation for each key.

    >>> sorted(permuted(np.arange(10), 10, key=3).tolist()) == list(range(10))
    True
    """
    bits = (size - 1).bit_length()
    low = np.uint64(bits - bits // 2)
    keys = _mixed(np.arange(ROUNDS, dtype=np.uint64) + np.uint64(key))
    moved = _network(places.astype(np.uint64), keys, low, np.uint64(bits // 2))
    while len(outside := (moved >= size).nonzero()[0]):
        moved[outside] = _network(moved[outside], keys, low, np.uint64(bits // 2))
    return moved.astype(np.int64)


def _network(
    value: UInt64[ndarray, " place"], keys: UInt64[ndarray, " round"], low: np.uint64, high: np.uint64
) -> UInt64[ndarray, " place"]:
    """One bijection of numbers of `low + high` bits: each half in turn is changed by what the other says."""
    one = np.uint64(1)
    right, left = value & ((one << low) - one), value >> low
    for number, key in enumerate(keys):
        if number % 2:
            left = left ^ (_mixed(right ^ key) & ((one << high) - one))
        else:
            right = right ^ (_mixed(left ^ key) & ((one << low) - one))
    return (left << low) | right


def _mixed(state: UInt64[ndarray, " n"]) -> UInt64[ndarray, " n"]:
    """SplitMix64 (Steele et al. 2014)."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
