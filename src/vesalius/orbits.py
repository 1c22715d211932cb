"""The mathematics of equivariant families: units that are one unit, transformed.

Olah et al. 2021 (Naturally Occurring Equivariance, distill.pub/2020/circuits/equivariance) found families by eye. Here
unit v is unit u transformed by g if v answers transformed pictures as u answers pictures; units that do so for amounts
that agree with each other, at most one unit for each amount, are an orbit. Among the weights between two orbits,
those whose ends are transformed alike are one weight, W[a→b] = W[T(a)→T(b)], so that a circuit can be told in a
fraction of its numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

Responses = Float[Tensor, "amount picture unit"]
ALIKE = 0.9
"""Correlation from which a unit is itself after a transformation; below half of it, it has been another in between."""
AGREE = 0.8
"""Share of an orbit's members that a further one must agree with."""


@dataclass(frozen=True)
class Orbit:
    """`units` by amount: unit i answers `steps[i]` steps after the first; `period` steps lead back to each unit."""

    units: tuple[int, ...]
    steps: tuple[int, ...]
    period: int

    def successor(self, unit: int, step: int) -> int | None:
        """The member that stands `step` steps after a unit, or None if the orbit has none there."""
        wanted = (self.steps[self.units.index(unit)] + step) % self.period
        return next((u for u, s in zip(self.units, self.steps) if s % self.period == wanted), None)


@dataclass(frozen=True)
class Match:
    """`values[lag, u, v]`: correlation of u on pictures with v on pictures transformed by `lags[lag]` steps more."""

    values: Float[Tensor, "lag unit other"]
    lags: Int[Tensor, " lag"]
    steps: int
    cyclic: bool

    @property
    def best(self) -> Float[Tensor, "unit other"]:
        """The correlation at the amount where it is largest; -1..1."""
        return self.values.amax(0)

    @property
    def turn(self) -> Int[Tensor, "unit other"]:
        """That amount, in steps."""
        return self.lags[self.values.argmax(0)]


def match(responses: Responses, *, cyclic: bool) -> Match:
    """Correlate every unit with every other one transformed by every amount, over pictures and amounts.

    Where amounts do not come full circle at least half of them must overlap. Units that never change match nothing.
    """
    steps = len(responses)
    if cyclic:
        lags = torch.arange(steps)
        standard = _standard(responses)
        values = [_products(standard, standard.roll(-int(lag), 0)) for lag in lags]
        return Match(torch.stack(values), lags, steps, True)
    lags = torch.arange(-(steps // 2), steps // 2 + 1)
    ahead = [(responses[: steps - lag], responses[lag:]) for lag in range(steps // 2 + 1)]
    forward = [_products(_standard(first), _standard(second)) for first, second in ahead]
    return Match(torch.stack([m.T for m in forward[:0:-1]] + forward), lags, steps, False)


def modulation(responses: Responses) -> Responses:
    """How each unit departs from its mean over amounts: what the transformation does, and not what the picture is.

    Pictures in which the layer changes more than in the median one count no more than that. Two amounts are too few
    to tell units apart by their difference alone, and stay as they are.
    """
    if len(responses) == 2:
        return responses
    changes = responses - responses.mean(0)
    size = changes.square().mean((0, 2), keepdim=True).sqrt()
    return changes / size.clamp(min=size.median().clamp(min=1e-30))


def invariant(responses: Responses, *, threshold: float) -> list[int]:
    """Units of which the pictures, and not the amount, make at least this share of the variance."""
    varies = responses.var((0, 1), correction=0)
    share = responses.mean(0).var(0, correction=0) / varies.clamp(min=1e-30)
    return ((share >= threshold) & (varies > 0)).nonzero()[:, 0].tolist()


def orbits(found: Match, *, threshold: float, still: Sequence[int] = ()) -> list[Orbit]:
    """Orbits of two units or more, the largest first; a unit belongs to one at most, `still` ones to none.

    The unit with the most partners (correlation of `threshold` or more, at an amount other than none) founds an
    orbit; its partners join in the order of their correlation, where their amount is free, and where they match
    most members by the amounts that the two have in the orbit. Then the rest go on.
    """
    best, turn, periods = found.best, found.turn, torch.tensor(_periods(found))
    fits = (best >= threshold) & (periods[:, None] == periods) & (turn % periods[:, None] != 0)
    settled = torch.tensor(list(still), dtype=torch.long)
    fits[settled], fits[:, settled] = False, False
    grown: list[Orbit] = []
    while fits.any():
        founder = int((fits.sum(1) + torch.where(fits, best, 0.0).mean(1)).argmax())
        partners = fits[founder].nonzero()[:, 0]
        partners = partners[best[founder, partners].argsort(descending=True, stable=True)].tolist()
        orbit = _grow(founder, partners, best >= threshold, turn, int(periods[founder]), found.steps)
        members = torch.tensor(orbit.units)
        fits[members], fits[:, members] = False, False
        if len(members) > 1:
            grown.append(orbit)
    return sorted(grown, key=lambda orbit: (-len(orbit.units), orbit.units))


def consistency(orbit: Orbit, found: Match) -> float:
    """Share of triples whose amounts add up, turn(u,v) + turn(v,w) = turn(u,w) to a step; 1 for fewer than three."""
    units, turn = torch.tensor(orbit.units), found.turn
    if len(units) < 3:
        return 1.0
    among = turn[units[:, None], units]
    off = among[:, :, None] + among[None] - among[:, None]
    distinct = ~torch.eye(len(units), dtype=torch.bool)
    triples = distinct[:, :, None] & distinct[None] & distinct[:, None]
    return (_apart(off, 0, orbit.period) <= _tolerance(found.steps))[triples].float().mean().item()


def permuted(responses: Responses, generator: torch.Generator) -> Responses:
    """The same responses, the units exchanged at random on every picture: nothing is anything's transformed self."""
    orders = [torch.randperm(responses.shape[2], generator=generator) for _ in range(responses.shape[1])]
    return torch.stack([responses[:, at][:, order] for at, order in enumerate(orders)], 1)


def symmetrised(
    weights: Float[Tensor, "target source row column"], targets: Orbit, sources: Orbit, *, steps: int
) -> tuple[Float[Tensor, "target source row column"], Float[Tensor, "kind row column"]]:
    """Each kernel as its turned copies foretell it, and the mean of each kind of kernel, its target facing 0.

    A full turn has `steps`. Every kernel is turned into the frame in which its target is the first of its orbit;
    those whose source then is the same are of one kind. A kernel's forecast is the mean of the others of its kind,
    turned back; one that is alone is foretold to be 0.
    """
    facing = torch.tensor(targets.steps)
    kind = (torch.tensor(sources.steps) - facing[:, None]) % sources.period
    degrees = (facing * (360 / steps))[:, None].expand(kind.shape)
    frame = turned(weights, -degrees).flatten(0, 1)
    member = F.one_hot(kind.flatten(), sources.period).to(frame)
    total, count = einsum(member, frame, "pair kind, pair y x -> kind y x"), member.sum(0)[:, None, None]
    others = count[kind.flatten()] - 1
    forecast = torch.where(others > 0, (total[kind.flatten()] - frame) / others.clamp(min=1), 0.0)
    return turned(forecast.unflatten(0, kind.shape), degrees), total / count.clamp(min=1)


def turned(
    kernels: Float[Tensor, "*pair row column"], degrees: Float[Tensor, "*pair"]
) -> Float[Tensor, "*pair row column"]:
    """Kernels turned counter-clockwise about their middle; quarter turns are exact, others bicubic."""
    rows, columns = kernels.shape[-2:]
    flat, angle = kernels.reshape(-1, 1, rows, columns), degrees.reshape(-1).deg2rad().to(kernels)
    y, x = (
        torch.linspace(-1 + 1 / n, 1 - 1 / n, n, dtype=kernels.dtype) for n in (rows, columns)
    )  # y runs down
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    grid = torch.stack([x * cos - y[:, None] * sin, x * sin + y[:, None] * cos], -1)
    return F.grid_sample(flat, grid, mode="bicubic", align_corners=False).reshape(kernels.shape)


def _standard(responses: Responses) -> Responses:
    centred = responses - responses.mean((0, 1))
    size = centred.square().sum((0, 1)).sqrt()
    return torch.where(size > 1e-6 * responses.abs().amax().clamp(min=1e-30), centred / size, 0.0)


def _products(first: Responses, second: Responses) -> Float[Tensor, "unit other"]:
    return einsum(first, second, "amount picture unit, amount picture other -> unit other")


def _periods(found: Match) -> list[int]:
    """After how many steps each unit is itself again: all, or a part if it was another in between."""
    if not found.cyclic:
        return [2 * len(found.lags)] * found.values.shape[1]
    own = found.values.diagonal(dim1=1, dim2=2)
    parts = [found.steps // d for d in range(6, 1, -1) if found.steps % d == 0 and found.steps // d > 1]
    again = {part: (own[part] >= ALIKE) & (own[1:part].amin(0) < ALIKE / 2) for part in parts}
    return [next((part for part in parts if again[part][unit]), found.steps) for unit in range(own.shape[1])]


def _grow(founder: int, partners: list[int], alike: Tensor, turn: Tensor, period: int, steps: int) -> Orbit:
    members = {founder: 0}
    for unit in partners:
        step = int(turn[founder, unit])
        others, taken = torch.tensor(list(members)), torch.tensor(list(members.values()))
        agrees = alike[others, unit] & (_apart(turn[others, unit], step - taken, period) <= _tolerance(steps))
        if (_apart(taken, step, period) > 0).all() and agrees.sum() >= AGREE * len(agrees):
            members[unit] = step
    ordered = sorted(members, key=lambda unit: members[unit] % period)
    return Orbit(tuple(ordered), tuple(members[unit] % period for unit in ordered), period)


def _apart(first: Tensor, second: Tensor | int, period: int) -> Tensor:
    return ((first - second + period // 2) % period - period // 2).abs()


def _tolerance(steps: int) -> int:
    return 1 if steps >= 8 else 0
