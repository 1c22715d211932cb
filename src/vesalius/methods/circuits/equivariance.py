"""Equivariance: families of units that are one unit turned, mirrored, magnified or recoloured.

Olah et al. 2021 (Naturally Occurring Equivariance, distill.pub/2020/circuits/equivariance) and Cammarata et al. 2021
(Curve Circuits, distill.pub/2020/circuits/curve-circuits) find such families by eye and use them to tell a circuit in
a tenth of its numbers. Here they are searched for:

1. pictures, each centred where the layer responds most, are transformed about the receptive field's centre, and every
   unit of the layer is read there, before its nonlinearity;
2. unit v is unit u transformed if v's answers change over the transformed pictures as u's over the pictures; units
   whose amounts agree with each other (turn(u,v) + turn(v,w) = turn(u,w)) form a family;
3. the same is done with the units exchanged at random on every picture, and in untrained twins;
4. the weights between a family and the family before it obey W[a→b] = W[T(a)→T(b)] if each kernel is foretold by
   its turned copies (R² of the forecast; shuffled orientations as control). What then remains to be told is one
   kernel for each difference of orientation.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.access import record
from vesalius.data.images import Images, open_images
from vesalius.errors import VesaliusError
from vesalius.examples import field_of, pre_activation
from vesalius.figures import Figure
from vesalius.method import method, progress
from vesalius.metrics import family_wise, require_finite
from vesalius.model import Model
from vesalius.orbits import (
    Match,
    Orbit,
    consistency,
    invariant,
    match,
    modulation,
    orbits,
    permuted,
    symmetrised,
)
from vesalius.responses import Window, answers, carried_on, window
from vesalius.result import Headline, Result
from vesalius.transformations import Transformation, transformation, transformed
from vesalius.weights.expanded import expanded_weights
from vesalius.weights.receptive_field import ReceptiveField

SHUFFLES = 8
"""Draws of each null that costs no forward pass."""
STILL = 0.95
"""Share of a unit's variance that a transformation leaves as it is, from which the unit is invariant."""
DRAWN = 8
"""Members whose curves are drawn, of a large family."""
SHOWN = 64
"""Units of the matrix that is drawn."""
KERNELS = 12
"""Kernels that are drawn."""


@dataclass(frozen=True)
class Equivariance(Result):
    """Families of a layer under one kind of transformation; correlations are in -1..1, amounts in `unit`s."""

    site: str
    transformation: str
    unit: str
    amounts: Float[Tensor, " step"]
    families: list
    """`{"units", "amounts", "period", "correlation", "consistency"}`, the largest first."""
    invariant: list
    """Units that answer as before."""
    best: Float[Tensor, "unit other"]
    """Correlation of each unit with each other one, transformed by the amount that makes it largest."""
    turn: Int[Tensor, "unit other"]
    """That amount, in steps."""
    curves: Float[Tensor, "member lag"]
    """Correlation of the largest family's first unit with members transformed by every amount."""
    exchanged: Float[Tensor, " draw"]
    """How many units are in the largest family when units are exchanged on every picture."""
    twins: Float[Tensor, " twin"]
    """And in untrained twins."""
    chance: float
    """What the largest family of either null passes once in a hundred times."""
    circuit: dict
    """`{"source", "targets", "sources", "explained", "shuffled", "kernels", "told"}`, or empty without one."""
    kernels: Float[Tensor, "kind row column"]
    """The mean kernel for each difference of orientation, from that of the most exciting one on."""
    choices: dict

    @property
    def found(self) -> int:
        """Units in the largest family; pairs, where a family cannot be more than a pair."""
        return _extent([len(one["units"]) for one in self.families], len(self.amounts))

    def headlines(self) -> list[Headline]:
        stands = self.found > max(self.chance, 2)
        what = "pairs" if len(self.amounts) == 2 else "units in the largest family"
        first = self.families[0] if self.families else None
        note = f"{self.site}: units {', '.join(map(str, first['units']))}" if first else f"{self.site}: none"
        rows = [Headline(f"{what} under {self.transformation}", self.found, self.chance, None, stands, note)]
        if first:
            rows += [
                Headline("its mean correlation", first["correlation"], note="it was selected for this"),
                Headline("share of its triples whose amounts add up", first["consistency"]),
            ]
        if self.circuit:
            explained, shuffled = self.circuit["explained"], self.circuit["shuffled"]
            rows.append(
                Headline(
                    f"weights from {self.circuit['source']} foretold by symmetry, R²",
                    explained,
                    max(shuffled),
                    None,
                    stands and explained > max(max(shuffled), 0.0) + 0.1,
                    f"{self.circuit['told']} kernels of {self.circuit['kernels']} tell it, "
                    f"{self.circuit['kernels'] / self.circuit['told']:.0f}× fewer",
                )
            )
        return rows

    def figure(self) -> Figure:
        order = [unit for one in self.families for unit in one["units"]] + self.invariant
        order = (order + [unit for unit in range(len(self.best)) if unit not in order])[:SHOWN]
        drawn = [
            figures.heatmap(
                self.best[order][:, order],
                title=f"{self.site} under {self.transformation}: {len(self.families)} families",
                x=order,
                y=order,
                x_label="unit: families from the largest to the smallest, units that never change, others",
                y_label="unit",
                value_label="correlation at the best amount",
                caption=f"The largest family has {max((len(f['units']) for f in self.families), default=0)} units; "
                f"{self.found} against {self.chance:.1f} by chance.",
            )
        ]
        if self.families and self.unit == "°":
            units, amounts = self.families[0]["units"], self.families[0]["amounts"]
            every = max(1, -(-len(units) // DRAWN))
            members = list(zip(units, amounts, self.curves))[::every]
            drawn.append(
                figures.tuning(
                    self.choices["lags"],
                    {f"{unit} at {amount:g}°": curve.clamp(min=0) for unit, amount, curve in members},
                    title=f"Who answers turned pictures as unit {units[0]} answers them unturned",
                    value_label="correlation",
                    caption=f"Each member at an angle of its own; {len(members)} of {len(units)} are drawn.",
                )
            )
        if self.circuit:
            angles = [360 / len(self.amounts) * kind for kind in range(len(self.kernels))]
            source, every = self.circuit["source"], max(1, len(angles) // KERNELS)
            explained, shuffled = self.circuit["explained"], max(self.circuit["shuffled"])
            drawn += [
                figures.lines(
                    angles,
                    {"sum over positions": self.kernels.sum((1, 2))},
                    title=f"Weights {source} → {self.site} over the difference of orientation",
                    x_label="orientation of the source from the most exciting one, degrees",
                    y_label="weight",
                    caption=f"The mean of all pairs of units that differ by this much. "
                    f"R² {explained:.2f}, with shuffled orientations at most {shuffled:.2f}.",
                ),
                figures.heatmap(
                    self.kernels[::every],
                    title=f"The same kernels, each turned to where {self.families[0]['units'][0]} faces",
                    panels=[f"{angle:g}°" for angle in angles[::every]],
                    value_label="mean weight",
                ),
            ]
        return figures.group(drawn, title=f"Equivariance of {self.site} under {self.transformation}")


@method(needs=("images", "conv"))
def equivariance(
    model: Model,
    *,
    site: str = "",
    under: Literal["rotation", "reflection", "scale", "hue"] = "rotation",
    steps: int = 24,
    images: str | Path | Images = "shapes",
    n_images: int = 32,
    threshold: float = 0.7,
    source: str | None = None,
    twins: int = 3,
    seed: int = 0,
) -> Equivariance:
    """Families of a layer's units that are one unit, transformed.

    A full turn (of the picture, or of its hues) is cut into `steps`, as are two octaves of scale. Units belong
    together from a correlation of `threshold` on. `source` is the layer whose weights onto the largest family are
    told by symmetry (None: the layer before; rotation only). Raises VesaliusError if `steps` is less than 4.

    >>> from vesalius.testbed import curve_network
    >>> found = equivariance(curve_network(), twins=1, n_images=8)
    >>> len(found.families[0]["units"])
    24
    """
    if steps < 4:
        raise VesaliusError(f"{steps} steps were asked for; expected 4 or more")
    kind, address = transformation(under), model.site(site)
    pictures = open_images(images).take(n_images, seed=seed)
    responses = _responses(model, address, pictures, kind, steps)
    changes, still = modulation(responses), invariant(responses, threshold=STILL)
    found = match(changes, cyclic=kind.cyclic)
    families = orbits(found, threshold=threshold, still=still)
    amounts = kind.amounts(steps)

    def extent(of: Float[Tensor, "amount picture unit"], still: list[int]) -> float:
        grown = orbits(match(of, cyclic=kind.cyclic), threshold=threshold, still=still)
        return float(_extent([len(orbit.units) for orbit in grown], len(amounts)))

    generator = torch.Generator().manual_seed(seed)
    exchanged = [extent(permuted(changes, generator), []) for _ in range(SHUFFLES)]
    untrained = []
    for number in progress(range(twins), "untrained twins"):
        given = _responses(model.random_twin(seed + 1 + number), address, pictures, kind, steps)
        untrained.append(extent(modulation(given), invariant(given, threshold=STILL)))
    nulls = [torch.tensor(null) for null in (exchanged, untrained)]
    told = _reduced(model, address, source, families, pictures, kind, steps, threshold, seed)
    circuit, kernels = told or ({}, torch.zeros(0, 1, 1))
    degrees = 360 / len(amounts) if kind.unit == "°" else float(amounts[1] - amounts[0])
    return Equivariance(
        address,
        under,
        kind.unit,
        amounts,
        [_described(orbit, found, degrees) for orbit in families],
        still,
        found.best,
        found.turn,
        found.values[:, families[0].units[0], list(families[0].units)].T
        if families
        else torch.zeros(0, len(found.lags)),
        *nulls,
        max(family_wise(null) for null in nulls if len(null)),
        circuit,
        kernels,
        {
            "read": pre_activation(model, address),
            "images": str(images),
            "n_images": len(pictures),
            "threshold": threshold,
            "lags": [float(lag) * degrees for lag in found.lags],
        },
    )


def _extent(sizes: list[int], steps: int) -> int:
    return len(sizes) if steps == 2 else max(sizes, default=0)


def _responses(
    model: Model, site: str, pictures: Images, kind: Transformation, steps: int
) -> Float[Tensor, "amount picture unit"]:
    """Every unit at one position; pictures are transformed about the centre of its receptive field."""
    read = pre_activation(model, site)
    seen = window(model, read)
    crops = _busiest(model, site, pictures, seen)
    moved = (
        transformed(crops, kind, amount, centre=seen.centre, radius=seen.field / 2 + 1)
        for amount in progress(kind.amounts(steps).tolist(), kind.name)
    )
    return torch.stack([require_finite(answers(model, read, part, seen=seen), read) for part in moved])


def _busiest(
    model: Model, site: str, pictures: Images, seen: Window
) -> Float[Tensor, "picture channel size size"]:
    """The window of each picture in which the layer as a whole departs most from its mean."""
    field, crops = field_of(model, site), []
    fitted = [pixels for _, pixels in pictures.batches(model.pictures)]
    with torch.no_grad(), record(model, site, stop=True) as acts:
        for pixels in fitted:
            model(pixels.to(model.device, model.dtype))
    maps = torch.cat([run[site] for run in acts.runs]).float().cpu()
    spread = maps.std((0, 2, 3), keepdim=True).clamp(min=1e-12)
    strength = ((maps - maps.mean((0, 2, 3), keepdim=True)) / spread).square().mean(1)
    for number, picture in enumerate(torch.cat(fitted)):
        top = left = 0
        if field is not None:
            inner = strength[number] * _inside(field, *strength.shape[1:], picture.shape[1:])
            row, column = divmod(int(inner.argmax()), inner.shape[1])
            top, left = (edge - seen.start for edge in field.box(row, column)[:2])
        crops.append(carried_on(picture, top, left, seen.size))
    return torch.stack(crops)


def _inside(
    field: ReceptiveField, rows: int, columns: int, size: tuple[int, ...]
) -> Float[Tensor, "row column"]:
    """1 where a position's field has its middle half within the picture."""
    centres = [field.offset + torch.arange(count) * field.stride for count in (rows, columns)]
    down, right = (
        ((at >= field.size / 4) & (at <= side - field.size / 4)).float() for at, side in zip(centres, size)
    )
    return down[:, None] * right


def _described(orbit: Orbit, found: Match, degrees: float) -> dict:
    among = found.best[list(orbit.units)][:, list(orbit.units)]
    distinct = ~torch.eye(len(orbit.units), dtype=torch.bool)
    return {
        "units": list(orbit.units),
        "amounts": [step * degrees for step in orbit.steps],
        "period": orbit.period * degrees,
        "correlation": among[distinct].mean().item(),
        "consistency": consistency(orbit, found),
    }


def _reduced(
    model: Model,
    site: str,
    source: str | None,
    families: list[Orbit],
    pictures: Images,
    kind: Transformation,
    steps: int,
    threshold: float,
    seed: int,
) -> tuple[dict, Float[Tensor, "kind row column"]] | None:
    """How far the weights between the largest families of two layers are one weight turned; None without families."""
    before = source if source is not None else _layer_before(model, site)
    if kind.name != "rotation" or not before or not families or len(families[0].units) < 3:
        return None
    earlier = model.site(before)
    given = _responses(model, earlier, pictures, kind, steps)
    changes, still = modulation(given), invariant(given, threshold=STILL)
    sources = orbits(match(changes, cyclic=True), threshold=threshold, still=still)
    if not sources or len(sources[0].units) < 3:
        return None
    target, origin = families[0], sources[0]
    weights = (
        expanded_weights(model, earlier, site, channels=list(target.units))[:, list(origin.units)]
        .float()
        .cpu()
    )
    forecast, kernels = symmetrised(weights, target, origin, steps=steps)
    generator = torch.Generator().manual_seed(seed)
    shuffled = [
        _explained(
            weights,
            symmetrised(weights, _dealt(target, generator), _dealt(origin, generator), steps=steps)[0],
        )
        for _ in range(SHUFFLES)
    ]
    circuit = {
        "source": earlier,
        "targets": list(target.units),
        "sources": list(origin.units),
        "explained": _explained(weights, forecast),
        "shuffled": shuffled,
        "kernels": weights.shape[0] * weights.shape[1],
        "told": int(kernels.flatten(1).any(1).sum()),
    }
    return circuit, kernels.roll(-int(kernels.sum((1, 2)).argmax()), 0)


def _layer_before(model: Model, site: str) -> str:
    names = model.architecture.layer_names(model.module)
    return names[names.index(site) - 1] if site in names and names.index(site) else ""


def _dealt(orbit: Orbit, generator: torch.Generator) -> Orbit:
    """The same units, the amounts dealt out at random."""
    order = torch.randperm(len(orbit.units), generator=generator).tolist()
    return Orbit(orbit.units, tuple(orbit.steps[i] for i in order), orbit.period)


def _explained(weights: Tensor, forecast: Tensor) -> float:
    return 1 - ((weights - forecast).square().sum() / weights.square().sum()).item()
