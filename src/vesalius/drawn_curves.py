"""A layer's answers to drawn curves of every orientation and radius: which way units face, and who is like whom.

The measurement behind the heat-maps and radial tuning curves of Cammarata et al. 2020 and 2021 (Curve Detectors,
Curve Circuits, distill.pub/2020/circuits), for all units of a layer at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vesalius import tuning
from vesalius.model import Model
from vesalius.orbits import match
from vesalius.responses import answers, window
from vesalius.stimuli import named

ANGLES = 24
LOOKS = ("filled", "filled, dark", "line", "line, dark")
ALIKE = 0.8
"""Correlation of two units' answers, one of them turned, from which they are of one family."""


@dataclass(frozen=True, eq=False)
class DrawnCurves:
    """What every unit answers, the part above 0, to curves `angles` × `radii` (px) × LOOKS."""

    answers: Float[Tensor, "angle radius look unit"]
    radii: Float[Tensor, " radius"]

    @property
    def heatmaps(self) -> Float[Tensor, "unit radius angle"]:
        """The mean over looks in shares of the largest; 0 for a unit that never answers."""
        mean = rearrange(self.answers.mean(2), "angle radius unit -> unit radius angle")
        return mean / mean.amax((1, 2), keepdim=True).clamp(min=1e-12)

    @property
    def curves(self) -> Float[Tensor, "unit angle"]:
        """Tuning: the mean over radii and looks, in shares of the largest."""
        mean = self.answers.mean((1, 2)).T
        return mean / mean.amax(1, keepdim=True).clamp(min=1e-12)

    @property
    def facing(self) -> Float[Tensor, " unit"]:
        """The direction of each tuning curve's mean, in degrees."""
        return tuning.circular_mean(self.curves)[0].nan_to_num(0.0)

    def family(self, unit: int) -> list[int]:
        """The unit, then those that answer as it does to curves that are turned, the most alike first."""
        alike = match(
            rearrange(self.answers, "angle radius look unit -> angle (radius look) unit"), cyclic=True
        )
        order = alike.best[unit].argsort(descending=True, stable=True).tolist()
        return [unit] + [other for other in order if other != unit and alike.best[unit, other] >= ALIKE]

    def radius(self, units: Sequence[int]) -> float:
        """Of the curves that units like, px: a geometric mean, each radius weighed by what it gets above half."""
        strength = self.answers[..., list(units)].amax(0).mean((1, 2)) * self.radii.isfinite()
        above = (strength / strength.max().clamp(min=1e-12) - 0.5).clamp(min=1e-12) * self.radii.isfinite()
        return ((above * self.radii.clamp(1e-6, 1e6).log()).sum() / above.sum()).exp().item()

    def correlation(
        self, units: Sequence[int], other: "DrawnCurves", others: Sequence[int]
    ) -> Float[Tensor, " unit"]:
        """Of the answers of each unit with those of its counterpart, over all curves; 0 if one never answers."""
        first = self.answers[..., list(units)].flatten(0, 2).T
        second = other.answers[..., list(others)].flatten(0, 2).T
        centred = [part - part.mean(1, keepdim=True) for part in (first, second)]
        size = [part.norm(dim=1).clamp(min=1e-12) for part in centred]
        return (centred[0] * centred[1]).sum(1) / (size[0] * size[1])


def drawn_curves(
    model: Model, site: str, *, radii: Float[Tensor, " radius"] | None = None, magnified: float = 1.0
) -> DrawnCurves:
    """Ask a layer about curves shown `magnified`; `radii` None are those that suit its receptive field.

    >>> from vesalius.testbed import curve_network
    >>> asked = drawn_curves(curve_network(), "curves")
    >>> asked.facing[3].round().item(), len(asked.family(3))
    (45.0, 24)
    """
    family, seen = named("rounded_corner"), window(model, site)
    asked = family.grid(seen.field)[1] if radii is None else radii
    angle, radius = torch.cartesian_prod(tuning.angles(ANGLES), asked * magnified).T
    given = [
        answers(
            model,
            site,
            family.draw(angle, radius, size=seen.size, centre=seen.centre, **family.variants[look]),
            seen=seen,
        ).unflatten(0, (ANGLES, len(asked)))
        for look in LOOKS
    ]
    return DrawnCurves(torch.stack(given, 2).clamp(min=0), asked)


def nearest(orientations: Sequence[float], facing: Sequence[float]) -> list[int]:
    """For each orientation the unit that faces it most nearly.

    >>> nearest([350.0, 100.0], [0.0, 90.0, 180.0])
    [0, 1]
    """
    return _apart(orientations, facing).argmin(1).tolist()


def elsewhere(
    orientations: Sequence[float], facing: Sequence[float], generator: torch.Generator
) -> list[int]:
    """For each orientation a unit, drawn at random, that faces at least 45° away from it."""
    weight = (_apart(orientations, facing) >= 45).float()
    return torch.multinomial(weight, 1, generator=generator)[:, 0].tolist()


def _apart(orientations: Sequence[float], facing: Sequence[float]) -> Float[Tensor, "orientation unit"]:
    return tuning.distance(torch.tensor(orientations)[:, None], torch.tensor(facing)[None])
