"""Statistics of every unit of a site while its activations stream by, in memory that does not grow with them.

A reducer is an object with `add` and a state of tensors. What it is given is always `[example, unit, position]`:
an example is an image, a context or a row; a position is a place in a map, a token, or the only one there is.
`examples` are the examples' own numbers, so an example must not come in two pieces.

Nothing depends on how the stream is cut into batches, nor on their order. Randomness is a hash of (seed, example,
unit, position) and not a state: a reservoir keeps the entries of smallest hash, which is a uniform sample without
replacement (Efraimidis and Spirakis 2006, by one key each), and can be merged. Bins have widths that are powers of
two and edges that are multiples of the width, so that when a larger value comes two bins become one and it is as if
the bins had always been those.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vesalius.errors import VesaliusError

CHUNK = 2**19
"""Numbers that a pass over the values holds a second time, so that they stay in the cache."""
KEY_BITS = 40
EMPTY = 1 << KEY_BITS
"""The key of a place that holds nothing; every other is smaller."""
FINEST = -100
"""No bin is narrower than two to this power, which single precision still holds."""


@runtime_checkable
class Reducer(Protocol):
    """What is made of a stream of activations, batch by batch."""

    def add(
        self, values: Float[Tensor, "example unit position"], examples: Int[Tensor, " example"]
    ) -> None: ...


def state(reducer: "Reducer | Reservoir") -> dict[str, Tensor]:
    """Everything a reducer knows, as tensors that can be saved."""
    parts = {}
    for name, value in vars(reducer).items():
        if isinstance(value, Reservoir):
            value.flush()
        if isinstance(value, Reservoir | Histogram):
            parts |= {f"{name}.{key}": tensor for key, tensor in state(value).items()}
        elif isinstance(value, Tensor):
            parts[name] = value
    return parts


def restore(reducer: Reducer, parts: dict[str, Tensor]) -> None:
    """Put a saved state into a reducer that was made with the same arguments."""
    known = state(reducer)
    wrong = [name for name in known if name not in parts or parts[name].shape != known[name].shape]
    if wrong or len(known) != len(parts):
        raise VesaliusError(
            f"the saved state does not fit this {type(reducer).__name__} in {', '.join(wrong) or 'what it holds'}; "
            "expected one made with the same arguments"
        )
    for name, tensor in known.items():
        tensor.copy_(parts[name])


class Moments:
    """Number, mean and variance of all values of each unit; exact, in double precision, of values below 1e18."""

    def __init__(self, units: int) -> None:
        self.count = torch.zeros((), dtype=torch.long)
        self.mean = torch.zeros(units, dtype=torch.float64)
        self.squares = torch.zeros(units, dtype=torch.float64)
        """Sum of squared deviations from the mean."""

    @property
    def variance(self) -> Float[Tensor, " unit"]:
        """Of the values seen, as a population."""
        return self.squares / self.count.clamp(min=1)

    @property
    def sd(self) -> Float[Tensor, " unit"]:
        return self.variance.sqrt()

    def add(self, values: Float[Tensor, "example unit position"], examples: Int[Tensor, " example"]) -> None:
        positions = values.shape[2]
        for part in values.split(max(1, CHUNK // values[0].numel())):
            part = part.float() if part.dtype.itemsize < 4 else part
            means = part.mean(2)
            squares = (torch.linalg.vector_norm(part - means[..., None], dim=2).cpu().double() ** 2).sum(0)
            means = means.cpu().double()
            mean = means.mean(0)
            squares += positions * (means - mean).square().sum(0)
            self._merge(len(part) * positions, mean, squares)

    def _merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        """Chan, Golub and LeVeque 1983."""
        total, step = int(self.count) + count, mean - self.mean
        self.squares += squares + step.square() * (int(self.count) * count / total)
        self.mean += step * (count / total)
        self.count += count


class TopExamples:
    """For each unit the `k` examples in which it is highest (`sign=1`) or lowest (`sign=-1`), each at its best place.

    Sorted, best first; of equal ones the example of smaller number; -1 and ∓inf where fewer than `k` were seen.
    """

    def __init__(self, units: int, k: int, *, sign: int = 1) -> None:
        self.sign = sign
        self.values = torch.full((units, k), -sign * torch.inf)
        self.examples = torch.full((units, k), -1, dtype=torch.long)
        self.positions = torch.full((units, k), -1, dtype=torch.long)

    def add(self, values: Float[Tensor, "example unit position"], examples: Int[Tensor, " example"]) -> None:
        reduced = values.amax(2) if self.sign > 0 else values.amin(2)
        best = _finite(reduced).cpu().float().T  # [unit, example]
        worst = self.values[:, -1:]
        moved = ((best - worst) * self.sign >= 0).any(1).nonzero()[:, 0]
        if len(moved) == 0:
            return
        old, new = self.values.shape[1], best.shape[1]
        numbers = torch.cat([self.examples[moved], examples.cpu()[None].expand(len(moved), new)], 1)
        scores = torch.cat([self.values[moved], best[moved]], 1) * self.sign
        places = torch.cat([self.positions[moved], torch.arange(new).expand(len(moved), new)], 1)
        known = torch.cat([torch.ones(len(moved), old), torch.zeros(len(moved), new)], 1).bool()
        known |= numbers < 0

        order = torch.where(numbers < 0, torch.iinfo(torch.int64).max, numbers).argsort(1)
        order = order.gather(1, scores.gather(1, order).argsort(dim=1, descending=True, stable=True))
        order = order[:, : self.values.shape[1]]
        numbers, scores, places, known = (part.gather(1, order) for part in (numbers, scores, places, known))
        row, column = (~known).nonzero(as_tuple=True)
        maps = values[places[row, column].to(values.device), moved[row].to(values.device)]
        places[row, column] = (maps.argmax(1) if self.sign > 0 else maps.argmin(1)).cpu()
        self.values[moved], self.examples[moved], self.positions[moved] = scores * self.sign, numbers, places


class Histogram:
    """How often the values of each unit fall in each of at most `bins` bins of equal width.

    The width is the smallest power of two with which all values seen fit, so between half and all of the bins are
    in use. `draws` positions of each example are counted, drawn by `seed`; None: all of them.
    """

    def __init__(self, units: int, *, bins: int = 64, draws: int | None = None, seed: int = 0) -> None:
        self.draws, self.seed = draws, seed
        self.low = torch.full((units,), torch.inf, dtype=torch.float64)
        self.high = torch.full((units,), -torch.inf, dtype=torch.float64)
        self.exponent = torch.full((units,), FINEST)
        """The width of a unit's bins is two to this power."""
        self.first = torch.zeros(units, dtype=torch.long)
        """The lower edge of the first bin, in widths."""
        self.counts = torch.zeros(units, bins, dtype=torch.long)

    @property
    def edges(self) -> Float[Tensor, "unit edge"]:
        """Edges of the bins, one more than there are bins; those beyond the largest value are of empty bins."""
        steps = self.first[:, None] + torch.arange(self.counts.shape[1] + 1)
        return torch.ldexp(steps.double(), self.exponent[:, None])

    def add(self, values: Float[Tensor, "example unit position"], examples: Int[Tensor, " example"]) -> None:
        drawn, _ = draw(values, examples, draws=self.draws, seed=self.seed)
        self.count(drawn)

    def count(self, drawn: Float[Tensor, "example unit position"]) -> Int[Tensor, " changed"]:
        """Count these values; returns the units whose bins had to change first."""
        drawn = _finite(drawn).double()
        changed = self._widen(drawn.amin((0, 2)), drawn.amax((0, 2)))
        units, bins = self.counts.shape
        flat = self.bin(drawn) + bins * torch.arange(units)[:, None]
        self.counts += torch.bincount(flat.flatten(), minlength=units * bins).view(units, bins)
        return changed

    def count_active(
        self, units: Int[Tensor, " active"], values: Float[Tensor, " active"]
    ) -> Int[Tensor, " changed"]:
        """As `count`, of sparse positive values, each of its own unit; bins begin at 0."""
        high = torch.full_like(self.high, -torch.inf)
        high.scatter_reduce_(0, units, _finite(values).double(), "amax")
        changed = self._widen(torch.where(high > -torch.inf, 0.0, torch.inf), high)
        size, bins = self.counts.shape
        flat = self.bin_active(units, values) + bins * units
        self.counts += torch.bincount(flat, minlength=size * bins).view(size, bins)
        return changed

    def bin(self, values: Float[Tensor, "example unit position"]) -> Int[Tensor, "example unit position"]:
        """The number of each value's bin."""
        return _floor(values.double(), self.exponent[:, None]) - self.first[:, None]

    def bin_active(
        self, units: Int[Tensor, " active"], values: Float[Tensor, " active"]
    ) -> Int[Tensor, " active"]:
        """The number of the bin of each value, of its own unit."""
        return _floor(values.double(), self.exponent[units]) - self.first[units]

    def _widen(self, low: Tensor, high: Tensor) -> Int[Tensor, " changed"]:
        changed = ((low < self.low) | (high > self.high)).nonzero()[:, 0]
        low = self.low[changed] = torch.minimum(self.low, low)[changed]
        high = self.high[changed] = torch.maximum(self.high, high)[changed]
        bins = self.counts.shape[1]
        exponent = _exponent(low, high, bins)
        first = _floor(low, exponent)

        known = self.counts[changed].sum(1) > 0
        steps = self.first[changed][:, None] + torch.arange(bins)
        target = (steps >> (exponent - self.exponent[changed]).clamp(0, 62)[:, None]) - first[:, None]
        target = torch.where(known[:, None], target, 0).clamp(0, bins - 1)  # beyond the ends all are empty
        self.counts[changed] = torch.zeros_like(target).scatter_add(1, target, self.counts[changed])
        moved = (exponent != self.exponent[changed]) | (first != self.first[changed])
        self.exponent[changed], self.first[changed] = exponent, first
        return changed[moved]


class Reservoir:
    """For each row the `size` entries of smallest key, no two of one example.

    Entries wait until there are as many as the reservoir holds, then all are sorted in at once.
    """

    def __init__(self, rows: int, size: int) -> None:
        if rows >= 1 << (62 - KEY_BITS):
            raise VesaliusError(
                f"a reservoir of {rows} rows was asked for; it has at most {1 << (62 - KEY_BITS)}"
            )
        self.keys = torch.full((rows, size), EMPTY)
        self.values = torch.zeros(rows, size)
        self.examples = torch.full((rows, size), -1)
        self.positions = torch.full((rows, size), -1)
        self._waiting: list[tuple[Tensor, ...]] = []

    def insert(self, row: Tensor, key: Tensor, value: Tensor, example: Tensor, position: Tensor) -> None:
        """Entries, each five numbers, as flat tensors of one length."""
        chance = key < self.keys[row, -1]
        self._waiting.append(tuple(part[chance] for part in (row, key, value, example, position)))
        if sum(len(entry[0]) for entry in self._waiting) > self.keys.numel():
            self.flush()

    def move(self, rows: Bool[Tensor, " row"], target: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Send every entry of some rows to the row that `target` makes of its row and its value."""
        stored = self._entries(rows)
        self._clear(rows)
        moved = []
        for row, key, value, *rest in [*self._waiting, stored]:
            moved.append((torch.where(rows[row], target(row, value), row), key, value, *rest))
        self._waiting = moved

    def flush(self) -> None:
        """Sort in what waits."""
        if not self._waiting:
            return
        new = [torch.cat(parts) for parts in zip(*self._waiting)]
        self._waiting = []
        touched = torch.zeros(len(self.keys), dtype=torch.bool)
        touched[new[0]] = True
        entries = [torch.cat([old, fresh]) for old, fresh in zip(self._entries(touched), new)]

        row, key, _, example, _ = entries
        order = ((row << KEY_BITS) + key).argsort()
        by_example = (row[order] << KEY_BITS) + example[order]
        together = by_example.argsort(stable=True)
        first = torch.ones(len(order), dtype=torch.bool)
        first[together[1:]] = by_example[together].diff() != 0
        order = order[first]
        rank = torch.arange(len(order)) - torch.searchsorted(row[order], row[order])
        kept = rank < self.keys.shape[1]
        order, rank = order[kept], rank[kept]

        self._clear(touched)
        for name, part in zip(("keys", "values", "examples", "positions"), entries[1:]):
            getattr(self, name)[row[order], rank] = part[order]

    def _clear(self, rows: Tensor) -> None:
        self.keys[rows], self.values[rows] = EMPTY, 0.0
        self.examples[rows], self.positions[rows] = -1, -1

    def _entries(self, rows: Tensor) -> tuple[Tensor, ...]:
        row, column = ((self.keys < EMPTY) & rows[:, None]).nonzero(as_tuple=True)
        return row, *(part[row, column] for part in (self.keys, self.values, self.examples, self.positions))


class Spectrum:
    """The whole range of each unit in bins of equal width, and from each bin a sample of `size` examples.

    From each example `draws` positions are drawn by `seed` (None: all are looked at). Within a bin the sample is
    uniform over what was drawn, with at most one from an example. Bins are those of `Histogram`.
    """

    def __init__(
        self, units: int, *, bins: int = 32, size: int = 8, draws: int | None = 1, seed: int = 0
    ) -> None:
        self.draws, self.seed = draws, seed
        self.histogram = Histogram(units, bins=bins)
        self.reservoir = Reservoir(units * bins, size)

    def add(self, values: Float[Tensor, "example unit position"], examples: Int[Tensor, " example"]) -> None:
        drawn, positions = draw(values, examples, draws=self.draws, seed=self.seed)
        changed = self.histogram.count(drawn)
        units, bins = self.histogram.counts.shape
        if len(changed):
            mask = torch.zeros(units, dtype=torch.bool)
            mask[changed] = True
            self.reservoir.move(mask.repeat_interleave(bins), self._row)
        number = examples.cpu()[:, None, None].expand_as(positions)
        unit = torch.arange(units)[:, None]
        key = hashed(self.seed + 1, number, unit, positions)
        row = self.histogram.bin(drawn) + bins * unit
        entries = (row, key, drawn, number, positions)
        self.reservoir.insert(*(part.flatten() for part in entries))

    def _row(self, row: Tensor, value: Tensor) -> Tensor:
        """Where an entry belongs now, of the unit whose rows held it."""
        bins = self.histogram.counts.shape[1]
        unit = row // bins
        steps = _floor(value.double(), self.histogram.exponent[unit])
        return unit * bins + steps - self.histogram.first[unit]

    def bins(self, unit: int) -> list[dict[str, Tensor]]:
        """The sample of each bin of a unit: `values`, `examples` and `positions`, in random order."""
        self.reservoir.flush()
        bins = self.histogram.counts.shape[1]
        picked = []
        for row in range(unit * bins, (unit + 1) * bins):
            full = self.reservoir.examples[row] >= 0
            kept = {
                name: getattr(self.reservoir, name)[row][full] for name in ("values", "examples", "positions")
            }
            picked.append(kept)
        return picked


class Quantiles:
    """Quantiles of each unit from a uniform sample of `size` examples with one random position of each.

    Exact while no more than `size` examples were seen; after that a rank is off by more than
    sqrt(ln(2/0.05) / (2 size)), 0.042 for 1,024, once in twenty times (Dvoretzky, Kiefer and Wolfowitz 1956).
    """

    def __init__(self, units: int, *, size: int = 1024, seed: int = 0) -> None:
        self.seed = seed
        self.reservoir = Reservoir(units, size)

    def add(self, values: Float[Tensor, "example unit position"], examples: Int[Tensor, " example"]) -> None:
        drawn, positions = draw(values, examples, draws=1, seed=self.seed)
        number = examples.cpu()[:, None, None].expand_as(positions)
        unit = torch.arange(positions.shape[1])[:, None].expand_as(positions)
        key = hashed(self.seed + 1, number, unit, positions)
        self.reservoir.insert(*(part.flatten() for part in (unit, key, _finite(drawn), number, positions)))

    def at(self, shares: Float[Tensor, " share"]) -> Float[Tensor, "unit share"]:
        """The values below which these shares of a unit's values lie, interpolated linearly."""
        self.reservoir.flush()
        seen = self.reservoir.keys < EMPTY
        if not seen.any():
            raise VesaliusError("quantiles were asked of a stream of which nothing has been seen")
        width = int(seen.sum(1).max())
        return self.reservoir.values[:, :width].double().quantile(shares.double(), dim=1).T


def draw(
    values: Float[Tensor, "example unit position"],
    examples: Int[Tensor, " example"],
    *,
    draws: int | None,
    seed: int,
) -> tuple[Float[Tensor, "example unit draw"], Int[Tensor, "example unit draw"]]:
    """`draws` random positions of each example, others for each unit; with replacement, None for all in order."""
    count, units, size = values.shape
    if draws is None:
        positions = torch.arange(size).expand(count, units, size)
        return values.float().cpu(), positions
    turn = torch.arange(draws)
    number = examples.cpu()[:, None, None]
    positions = (uniform(seed, number, torch.arange(units)[:, None], turn) * size).long()
    return values.gather(2, positions.to(values.device)).float().cpu(), positions


def uniform(seed: int, *numbers: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Numbers in [0, 1) from the hash of a seed and of whole numbers."""
    return hashed(seed, *numbers).double() / EMPTY


def hashed(seed: int, *numbers: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Whole numbers of `KEY_BITS` bits made of a seed and of whole numbers (SplitMix64, Steele et al. 2014)."""
    state = torch.tensor(seed)
    for number in numbers:
        state = _mixed(state * _signed(0x9E3779B97F4A7C15) + number + 1)
    return _shifted(_mixed(state), 64 - KEY_BITS)


def _mixed(state: Tensor) -> Tensor:
    state = (state ^ _shifted(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shifted(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, places: int) -> Tensor:
    """To the right, filling with zeros."""
    return (state >> places) & ((1 << (64 - places)) - 1)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number


def _floor(values: Tensor, exponent: Tensor) -> Int[Tensor, "..."]:
    """How many widths of two to the `exponent` are below each value; exact."""
    return torch.ldexp(values, -exponent).floor().long()


def _exponent(low: Tensor, high: Tensor, bins: int) -> Int[Tensor, " unit"]:
    """The smallest power of two whose bins cover low to high; never finer than a millionth of the larger end."""
    magnitude = torch.maximum(low.abs(), high.abs())
    finest = torch.frexp(magnitude).exponent.long() - 20
    span = (high - low) / bins
    exponent = torch.where(span > 0, torch.frexp(span).exponent.long() - 1, FINEST)
    exponent = exponent.maximum(finest).clamp(min=FINEST)
    for _ in range(3):
        exponent = exponent + (_floor(high, exponent) - _floor(low, exponent) >= bins)
    return exponent


def _finite(values: Tensor) -> Tensor:
    if not values.isfinite().all():
        raise VesaliusError("an activation is NaN or infinite; expected finite numbers, so check the weights")
    return values
