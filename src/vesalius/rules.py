"""Weights written from rules: families of oriented units, and kernels that say what a unit should see where.

The builder of the handwritten curve circuit of Olah, Cammarata et al. 2021 ("Curve Circuits",
distill.pub/2020/circuits/curve-circuits): nobody looks at a trained network; a unit has a place in a family, a
rule says which units of the layer before it wants at which place, and the two give the weights.

An orientation is the direction in which a unit faces, as with the stimuli: a curve where it bulges (")" faces 0,
to the right), an edge its bright side, a line its normal, and so modulo 180. It is in degrees counter-clockwise:
whoever turns the picture by φ adds φ. Lengths are in pixels of the input.

Kernels turn with their units: among units 15° apart, `W[i+6, j+6]` is `W[i, j]` turned by a quarter.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Kernels = Float[Tensor, "target source row column"]
Profile = Sequence[float]
"""Weight over the difference of two orientations, at equal steps from 0 to half a period."""

CURVES: Profile = (5.8, 4.9, 3.1, 1.4, 0.3, 0.0, -0.1, -0.2, -0.6, -1.8, -4.2, -6.9, -7.9)
"""Curve from curve, 0 to 180 in steps of 15°: the sums over positions of the published handwritten weights."""
LINES: Profile = (1.0, 0.7, 0.2, -0.1, -0.3, -0.4, -0.4)
"""Anything from lines, or from edges of either polarity: 0 to 90 in steps of 15°."""


@dataclass(frozen=True)
class Unit:
    """A place in a family: `orientation` in degrees of `period`, None for a unit that faces nowhere."""

    family: str
    orientation: float | None = None
    period: float = 360.0

    @property
    def facing(self) -> float:
        """The orientation of a unit that has one."""
        assert self.orientation is not None, f"{self.family} faces nowhere"
        return self.orientation

    def __str__(self) -> str:
        return self.family if self.orientation is None else f"{self.family} {self.orientation:g}°"


def family(name: str, count: int, *, period: float = 360.0) -> list[Unit]:
    """`count` units that face equally many directions, the first to the right.

    >>> [str(unit) for unit in family("curve", 4)]
    ['curve 0°', 'curve 90°', 'curve 180°', 'curve 270°']
    """
    return [Unit(name, number * period / count, period) for number in range(count)]


def edges(
    targets: Sequence[Unit], *, size: int, wavelength: float, width: float
) -> Float[Tensor, "target row column"]:
    """Gabor filters of odd phase on pixels: bright on the side the unit faces, dark on the other, Σ|w| = 1."""

    def kernel(target: Unit, x: Tensor, y: Tensor) -> Tensor:
        across = _along(x, y, target.facing)
        return torch.sin(2 * math.pi * across / wavelength) * torch.exp(-(x**2 + y**2) / (2 * width**2))

    kernels = torch.stack([kernel(target, *_grid(size, 1.0)) for target in targets])
    return (kernels / kernels.abs().sum((1, 2), keepdim=True)).float()


def contour(
    targets: Sequence[Unit],
    sources: Sequence[Unit],
    *,
    size: int,
    stride: float,
    radius: float,
    width: float,
    reach: float,
    profile: Profile = LINES,
) -> Kernels:
    """Along the contour a unit stands for, what lies in the contour's own direction excites, what crosses it inhibits.

    The contour is an arc of `radius` (infinite: a line) through the centre, bulging where the target faces. A tap
    weighs a Gaussian of its distance from the arc (sd `width`) and from the centre (sd `reach`), times `profile`
    of the difference between the source's orientation and the arc's there, modulo the smaller of the two periods.
    The excitation sums to 1.
    """

    def kernel(target: Unit, source: Unit, x: Tensor, y: Tensor) -> Tensor:
        facing = math.radians(target.facing)
        if math.isinf(radius):
            off, normal = _along(x, y, target.facing), torch.full_like(x, target.facing)
        else:
            x_c, y_c = x + radius * math.cos(facing), y + radius * math.sin(facing)  # from the arc's centre
            off, normal = torch.hypot(x_c, y_c) - radius, torch.rad2deg(torch.atan2(y_c, x_c))
        ridge = torch.exp(-(off**2) / (2 * width**2) - (x**2 + y**2) / (2 * reach**2))
        period = min(target.period, source.period)
        return ridge * over_difference(profile, source.facing - normal, period=period)

    return _written(targets, sources, kernel, size=size, stride=stride)


def ring(
    sources: Sequence[Unit], *, size: int, stride: float, radius: float, width: float, inward: bool = False
) -> Kernels:
    """One unit that sees a circle of curves around it, bulging away from it (a circle) or `inward` (an evolute)."""

    def kernel(target: Unit, source: Unit, x: Tensor, y: Tensor) -> Tensor:
        off, normal = torch.hypot(x, y) - radius, torch.rad2deg(torch.atan2(y, x)) + 180.0 * inward
        return torch.exp(-(off**2) / (2 * width**2)) * over_difference(
            CURVES, source.facing - normal, period=source.period
        )

    return _written([Unit("ring")], sources, kernel, size=size, stride=stride)


def sides(
    targets: Sequence[Unit], sources: Sequence[Unit], *, size: int, stride: float, reach: float
) -> Kernels:
    """The first source on the side the unit faces, the second on the other; each inhibits where the other excites."""

    def kernel(target: Unit, source: Unit, x: Tensor, y: Tensor) -> Tensor:
        across = _along(x, y, target.facing) / reach
        sign = 1.0 if source == sources[0] else -1.0
        return sign * across * torch.exp(-(x**2 + y**2) / (2 * reach**2))

    return _written(targets, sources, kernel, size=size, stride=stride)


def copies(units: Sequence[Unit], sources: Sequence[Unit], *, size: int) -> Kernels:
    """Each unit reads the source that is the same as itself, at the same place, with weight 1."""
    kernels = torch.zeros(len(units), len(sources), size, size)
    for number, unit in enumerate(units):
        kernels[number, list(sources).index(unit), size // 2, size // 2] = 1.0
    return kernels


def over_difference(profile: Profile, difference: Tensor, *, period: float) -> Tensor:
    """`profile` at a difference of orientations in degrees, linear between its steps and even."""
    away = ((difference + period / 2) % period - period / 2).abs() / (period / 2) * (len(profile) - 1)
    table = torch.tensor(profile, dtype=away.dtype)
    low = away.floor().long().clamp(max=len(profile) - 2)
    return torch.lerp(table[low], table[low + 1], away - low)


def _written(
    targets: Sequence[Unit],
    sources: Sequence[Unit],
    kernel: Callable[[Unit, Unit, Tensor, Tensor], Tensor],
    *,
    size: int,
    stride: float,
) -> Kernels:
    """Every pair's kernel, each target's excitation scaled to sum to 1."""
    x, y = _grid(size, stride)
    if not targets:
        return torch.zeros(0, len(sources), size, size)
    weights = torch.stack([torch.stack([kernel(t, s, x, y) for s in sources]) for t in targets])
    return (weights / weights.clamp(min=0).sum((1, 2, 3), keepdim=True)).float()


def _grid(size: int, stride: float) -> tuple[Float[Tensor, "row column"], Float[Tensor, "row column"]]:
    """How far to the right and up of the centre each tap lies."""
    steps = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2) * stride
    return steps.expand(size, size), -steps[:, None].expand(size, size)


def _along(x: Tensor, y: Tensor, orientation: float) -> Tensor:
    """The distance from the centre in the direction of `orientation`."""
    return x * math.cos(math.radians(orientation)) + y * math.sin(math.radians(orientation))
