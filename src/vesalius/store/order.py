"""In which order rows are read: shuffled, and yet known for any place without the places before it.

1. An epoch begins to count the rows at a random one, so that none is always the last, or beside the same others.
2. It cuts them into runs of a few neighbours, which are read at once, and permutes all runs of the store.
3. Each of `world` ranks takes an equal share of that sequence.

Neighbours in a shard are strangers in the corpus, since rows were permuted within their shard when they were written:
that, and that any run may come at any place, is how rows are mixed. The longer the run the faster the reading, and
the more a batch is like one of fewer rows: see `run_of`.

Runs are permuted by a Feistel network over the bits of their number (Luby and Rackoff 1988), walked on until it lands
inside (Black and Rogaway 2002), of which any part can be had alone, also of 10^11 rows. So there is no state to keep,
and a run that was stopped goes on with the same rows.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt64
from numpy import ndarray

from vesalius.errors import VesaliusError

RUN = 128
"""Neighbouring rows that are read at once, if their shard holds enough contexts."""
APART = 4
"""Contexts of a shard for each row of a run: less than one row in so many has another of its context beside it."""
CHUNK = 1024
"""Runs that are permuted at once."""
ROUNDS = 6


class Runs(NamedTuple):
    """Stretches of neighbouring rows, one after the other."""

    firsts: Int[ndarray, " run"]
    counts: Int[ndarray, " run"]


def one(first: int, last: int) -> Runs:
    """The rows from one number to another."""
    return Runs(np.array([first]), np.array([last - first]))


def run_of(contexts_per_shard: int) -> int:
    """How many neighbours stay together: `RUN`, or fewer where shards are so small that neighbours are no strangers.

    With ρ the share of a number's variance that lies between shards, a batch in runs of r says as much as one that is
    1 + (r - 1) ρ times smaller (Kish 1965).

    >>> run_of(819), run_of(40), run_of(1)
    (128, 10, 1)
    """
    return max(1, min(RUN, contexts_per_shard // APART))


@dataclass(frozen=True)
class Order:
    """The endless sequence of rows that one rank sees: each row of its share once, then the next epoch.

    Over all ranks each row comes exactly once in an epoch.

    >>> order = Order(6, seed=1, run=2)
    >>> order.at(0, 6).tolist(), order.at(6, 6).tolist(), order.at(4, 4).tolist()
    ([3, 4, 5, 0, 1, 2], [0, 1, 4, 5, 2, 3], [1, 2, 0, 1])
    """

    rows: int
    seed: int = 0
    rank: int = 0
    world: int = 1
    run: int = RUN

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world <= self.rows or self.run < 1:
            raise VesaliusError(
                f"rank {self.rank} of {self.world} in runs of {self.run} was asked for {self.rows} rows; "
                "expected a rank below their number, a row for each and runs of at least 1"
            )

    @property
    def share(self) -> tuple[int, int]:
        """Which stretch of an epoch is this rank's."""
        return self.rank * self.rows // self.world, (self.rank + 1) * self.rows // self.world

    def at(self, first: int, count: int) -> Int[ndarray, " row"]:
        """The rows at `count` places from `first` on."""
        firsts, counts = self.runs(first, count)
        return np.repeat(firsts - counts.cumsum() + counts, counts) + np.arange(counts.sum())

    def runs(self, first: int, count: int) -> Runs:
        """The same as stretches of neighbours."""
        (low, high), last = self.share, first + count
        parts = [Runs(np.empty(0, int), np.empty(0, int))]
        while first < last:
            epoch, place = divmod(first, high - low)
            stop = min(high - low, place + last - first)
            parts.append(self._cut(epoch, low + place, low + stop))
            first += stop - place
        return Runs(*(np.concatenate(part) for part in zip(*parts)))

    def _cut(self, epoch: int, begin: int, end: int) -> Runs:
        """The places of an epoch from one to another, as the rows that come there."""
        blocks = np.arange(begin // self.run, -(-end // self.run))
        chunks = range(begin // self.run // CHUNK, (end - 1) // self.run // CHUNK + 1)
        moved = np.concatenate([_moved(self, epoch, chunk) for chunk in chunks])
        within = np.maximum(begin - blocks * self.run, 0)
        counts = np.minimum(end - blocks * self.run, self.run) - within
        turn = _key(self.seed, epoch, 0) % self.rows
        firsts = (moved[blocks - CHUNK * chunks.start] * self.run + within + turn) % self.rows
        over = np.flatnonzero(firsts + counts > self.rows)  # the one that the turn cuts in two
        beyond = firsts[over] + counts[over] - self.rows
        counts[over] -= beyond
        return Runs(np.insert(firsts, over + 1, 0), np.insert(counts, over + 1, beyond))


@lru_cache(maxsize=64)
def _key(seed: int, *numbers: int) -> int:
    state = np.array([seed % 2**64], np.uint64)
    for number in (len(numbers), *numbers):
        state = _mixed(state ^ np.uint64(number % 2**64))
    return int(state[0] >> np.uint64(1))


@lru_cache(maxsize=8)
def _moved(order: Order, epoch: int, chunk: int) -> Int[ndarray, " block"]:
    """Where an epoch sends a chunk of runs; what is left of the places after whole runs comes last."""
    whole = order.rows // order.run
    blocks = np.arange(chunk * CHUNK, (chunk + 1) * CHUNK)
    inside = blocks < whole
    blocks[inside] = permuted(blocks[inside], max(whole, 1), key=_key(order.seed, epoch, 1))
    return blocks


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
