"""Examples of every latent of a dictionary from one pass over its codes: the top, and a sample of every interval.

Bricken et al. 2023 (Towards Monosemanticity, transformer-circuits.pub/2023/monosemantic-features) show a feature by
the contexts in which it is highest and by random ones of evenly spaced intervals of its activation, since the top
alone does not show what a feature fires for. Only what is active is ever looked at:

1. a histogram of each latent in bins whose width is a power of two, so that a larger value merges bins;
2. the `top` entries, and of every bin those of smallest key, a hash of (seed, example, latent, position), which is a
   uniform sample whatever the order of the stream; of one example at most one;
3. with an entry goes what the latent did around it: a window of tokens, or a neighbourhood in a map;
4. at the end the bins' samples are dealt to `intervals` of equal width from 0 to the maximum.

The state is a few hundred numbers for each latent and does not grow with the stream.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius.dictionaries.codes import Codes
from vesalius.errors import VesaliusError
from vesalius.store.reducers import EMPTY, KEY_BITS, Histogram, hashed

BINS = 64
TIES = 9
"""Bits of a key that tell equal values apart."""
WAITING = 2**20
"""Entries that may wait to be sorted in."""


@dataclass(frozen=True)
class Picked:
    """Examples latent after latent; within one the top first, then interval after interval from the highest."""

    starts: Int[Tensor, " latent_and_one"]
    groups: Int[Tensor, " example"]
    """-1 of the top, else the number of the interval."""
    values: Float[Tensor, " example"]
    examples: Int[Tensor, " example"]
    positions: Int[Tensor, " example"]
    windows: Float[Tensor, "example offset"]
    """The latent's values at `offsets` from the position; 0 where nothing counts."""


class _Entries(NamedTuple):
    keys: Int[Tensor, " entry"]
    latents: Int[Tensor, " entry"]
    values: Float[Tensor, " entry"]
    examples: Int[Tensor, " entry"]
    positions: Int[Tensor, " entry"]
    windows: Float[Tensor, "entry offset"]

    def take(self, which: Tensor) -> "_Entries":
        return _Entries(*(part[which] for part in self))


class LatentExamples:
    """Feed it whole examples; `columns` is the width of a map, None of tokens."""

    def __init__(
        self,
        latents: int,
        *,
        top: int = 20,
        intervals: int = 11,
        per_interval: int = 5,
        window: int = 4,
        columns: int | None = None,
        seed: int = 0,
    ) -> None:
        if not 1 <= intervals <= BINS // 2:
            raise VesaliusError(f"{intervals} intervals were asked for; expected 1 to {BINS // 2}")
        self.intervals, self.per_interval, self.columns, self.seed = intervals, per_interval, columns, seed
        reach = torch.arange(-window, window + 1)
        down = reach if columns else reach.new_zeros(1)
        self.offsets = torch.cartesian_prod(down, reach)
        """Steps in rows and columns."""
        self.seen = 0
        """Rows that came by."""
        self.sums = torch.zeros(latents, dtype=torch.float64)
        self.histogram = Histogram(latents, bins=BINS)
        self.top = _Kept(latents, top)
        self.sample = _Kept(latents * BINS, per_interval + 3)

    @property
    def counts(self) -> Int[Tensor, " latent"]:
        """In how many rows each fired."""
        return self.histogram.counts.sum(1)

    @property
    def maxima(self) -> Float[Tensor, " latent"]:
        """The highest value of each, 0 of one that never fired."""
        return self.histogram.high.clamp(min=0).float()

    def add(self, examples: Int[Tensor, " row"], positions: Int[Tensor, " row"], codes: Codes) -> None:
        fires = codes.values > 0
        rows, latents, values = codes.rows[fires], codes.latents[fires], codes.values[fires].float()
        self.seen += len(codes)
        self.sums.index_add_(0, latents, values.double())
        changed = self.histogram.count_active(latents, values)
        self.sample.open((changed[:, None] * BINS + torch.arange(BINS)).flatten())
        numbers, places = examples[rows], positions[rows]
        noise = hashed(self.seed, numbers, latents, places)
        rank = ((0x7F800000 - values.view(torch.int32).long()) << TIES) + (noise & ((1 << TIES) - 1))
        around = _Neighbours(
            examples, positions, rows, latents, values, codes.width, self.offsets, self.columns
        )
        for kept, bins, keys in (
            (self.top, latents, rank),
            (self.sample, self._bins(latents, values), noise),
        ):
            chosen = kept.chance(bins, keys)
            parts = (part[chosen] for part in (keys, latents, values, numbers, places))
            kept.insert(_Entries(*parts, around.of(chosen)))
        self.top.settle(lambda latents, values: latents)
        self.sample.settle(self._bins)

    def picked(self) -> Picked:
        """The examples to show."""
        self.top.settle(lambda latents, values: latents, now=True)
        self.sample.settle(self._bins, now=True)
        best, sampled = self.top.kept, self.sample.kept
        interval, kept = self._dealt(sampled)
        sampled = sampled.take(kept)
        entries = _Entries(*(torch.cat(parts) for parts in zip(best, sampled)))
        groups = torch.cat([interval.new_full((len(best.keys),), self.intervals), interval[kept]])

        order = entries.values.argsort(descending=True, stable=True)
        order = order[groups[order].argsort(descending=True, stable=True)]
        order = order[entries.latents[order].argsort(stable=True)]
        entries, groups = entries.take(order), groups[order]
        counts = entries.latents.bincount(minlength=len(self.sums))
        return Picked(
            torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            torch.where(groups == self.intervals, -1, groups),
            entries.values,
            entries.examples,
            entries.positions,
            entries.windows.float(),
        )

    def _bins(self, latents: Tensor, values: Tensor) -> Int[Tensor, " entry"]:
        return self.histogram.bin_active(latents, values) + BINS * latents

    def _dealt(self, entries: _Entries) -> tuple[Int[Tensor, " entry"], Int[Tensor, " kept"]]:
        """The interval of each entry, and which are kept: below the key to which all bins of the interval are known,
        so that they are a uniform sample of it; others only where these are too few."""
        latents = torch.arange(len(self.sums))
        widths = torch.ldexp(torch.ones(len(latents)), self.histogram.exponent)
        per_latent = self.intervals / self.maxima.clamp(min=1e-30)
        interval = (entries.values * per_latent[entries.latents]).long().clamp(0, self.intervals - 1)
        known = torch.full((len(latents) * self.intervals,), EMPTY)
        for edge in (0, 1 - 1e-6):  # a bin reaches into two intervals at most
            reached = (torch.arange(BINS) + edge) * widths[:, None] * per_latent[:, None]
            flat = reached.long().clamp(0, self.intervals - 1) + self.intervals * latents[:, None]
            known.scatter_reduce_(0, flat.flatten(), self.sample.limit, "amin")

        group = interval + self.intervals * entries.latents
        over = (entries.keys > known[group]).long()
        chosen = _first_of_each(group, (over << KEY_BITS) + entries.keys, entries.examples, self.per_interval)
        return interval, chosen


class _Kept:
    """Of the entries of every bin the `size` of smallest key."""

    def __init__(self, bins: int, size: int) -> None:
        self.size = size
        self.limit = torch.full((bins,), EMPTY)
        """What a key must stay below to matter; EMPTY while there is room."""
        self.waiting: list[_Entries] = []

    @property
    def kept(self) -> _Entries:
        return self.waiting[0]

    def open(self, bins: Int[Tensor, " bin"]) -> None:
        """Let everything in, because the bins are no longer the same."""
        self.limit[bins] = EMPTY

    def chance(self, bins: Tensor, keys: Tensor) -> Int[Tensor, " chosen"]:
        return (keys < self.limit[bins]).nonzero()[:, 0]

    def insert(self, entries: _Entries) -> None:
        self.waiting.append(entries)

    def settle(self, bins_of: Callable[[Tensor, Tensor], Tensor], *, now: bool = False) -> None:
        """Sort in what waits, if it is much."""
        if not now and sum(len(part.keys) for part in self.waiting[1:]) < WAITING:
            return
        entries = _Entries(*(torch.cat(parts) for parts in zip(*self.waiting)))
        bins = bins_of(entries.latents, entries.values)
        chosen = _first_of_each(bins, entries.keys, entries.examples, self.size)
        entries, bins = entries.take(chosen), bins[chosen]
        counts = bins.bincount(minlength=len(self.limit))
        last = counts.cumsum(0) - 1
        full = counts == self.size
        self.limit = torch.where(full, entries.keys[last.clamp(min=0)], EMPTY) if len(bins) else self.limit
        self.waiting = [entries]


def _first_of_each(
    groups: Int[Tensor, " entry"], keys: Int[Tensor, " entry"], examples: Int[Tensor, " entry"], size: int
) -> Int[Tensor, " kept"]:
    """The entries of the `size` smallest keys of each group, sorted so, without a second one of an example."""
    order = keys.argsort(stable=True)
    order = order[groups[order].argsort(stable=True)]
    pairs = groups[order] * (int(examples.max()) + 1 if len(examples) else 1) + examples[order]
    together = pairs.argsort(stable=True)
    fresh = torch.ones(len(order), dtype=torch.bool)
    fresh[together[1:]] = pairs[together].diff() != 0
    order = order[fresh]
    rank = torch.arange(len(order)) - torch.searchsorted(groups[order], groups[order])
    return order[rank < size]


class _Neighbours:
    """What the same latent did around an entry, looked up among the codes of the batch."""

    def __init__(
        self,
        examples: Tensor,
        positions: Tensor,
        rows: Tensor,
        latents: Tensor,
        values: Tensor,
        width: int,
        offsets: Tensor,
        columns: int | None,
    ) -> None:
        self.rows, self.latents, self.width, self.offsets = rows, latents, width, offsets
        self.positions = positions
        places = int(positions.max()) + 1 if len(positions) else 1
        self.columns = columns or places
        self.local = torch.unique_consecutive(examples, return_inverse=True)[1]
        self.row_at = torch.full((int(self.local.max()) + 1 if len(examples) else 1, places), -1)
        self.row_at[self.local, positions] = torch.arange(len(examples))
        self.keys, order = (rows * width + latents).sort()
        self.values = values[order]

    def of(self, chosen: Int[Tensor, " entry"]) -> Float[Tensor, "entry offset"]:
        if not len(chosen):
            return self.values.new_zeros(0, len(self.offsets)).half()
        row, latent = self.rows[chosen], self.latents[chosen, None]
        down, across = (
            (self.positions[row] // self.columns)[:, None],
            (self.positions[row] % self.columns)[:, None],
        )
        down, across = down + self.offsets[:, 0], across + self.offsets[:, 1]
        place = down * self.columns + across
        there = (down >= 0) & (across >= 0) & (across < self.columns) & (place < self.row_at.shape[1])
        neighbour = self.row_at[self.local[row, None], torch.where(there, place, 0)]
        there &= neighbour >= 0
        key = neighbour * self.width + latent
        found = torch.searchsorted(self.keys, key).clamp(max=len(self.keys) - 1)
        return torch.where(there & (self.keys[found] == key), self.values[found], 0).half()
