"""Superposition: more features than dimensions, and how they share them.

Elhage et al. 2022 (Toy Models of Superposition, transformer-circuits.pub/2022/toy_model, arXiv 2209.10652). The
vectors of known features, rows of W_E or columns of W_U, each have a dimensionality D_i, the share of a dimension
that is their own: 1 orthogonal to all others, 1/2 in an antipodal pair, 2/5 in a pentagon, and so on. Beside it the
same for random directions of equal lengths.

For a toy model, whose features are known to be present so often and to matter so much, there is also what sharing
achieves: the loss, against the least that one dimension for each represented feature allows.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vesalius import figures
from vesalius.errors import VesaliusError, nearest
from vesalius.figures import Figure
from vesalius.method import method
from vesalius.metrics import bootstrap
from vesalius.model import Model
from vesalius.result import Headline, Result
from vesalius.testbed.toy_superposition import (
    PHASES,
    ToySuperposition,
    best_phase,
    loss_without,
    sample,
    trained_phase,
)
from vesalius.weights.superposition import dimensionality, interference

DRAWN = 40
"""Features in the figure, at most: the longest."""
SAMPLES = 4096


@dataclass(frozen=True)
class Superposition(Result):
    """How the vectors of features share a space of `width` dimensions; longest feature first where drawn."""

    weight: str
    width: int
    norms: Float[Tensor, " feature"]
    dimensionality: Float[Tensor, " feature"]
    """D_i, 0 to 1."""
    interference: Float[Tensor, " feature"]
    """Σ over other features of their squared component along this one."""
    random: Float[Tensor, " feature"]
    """D_i of random directions of the same lengths."""
    median: list
    """Of D_i over features that are represented, `[value, low, high]`."""
    drawn: list
    """The features of `gram` and `plane`, by number."""
    gram: Float[Tensor, "drawn drawn"]
    """Inner products."""
    plane: Float[Tensor, "drawn 2"] | None
    """The vectors themselves where there are two dimensions."""
    loss: list
    """Of a toy model `[value, low, high]`; else empty."""
    loss_without: float
    """The least loss of one dimension for each represented feature."""
    phases: Int[Tensor, "panel density importance"] | None
    """What is best for two features in one dimension, in closed form and as trained: a number in `PHASES`."""
    densities: Float[Tensor, " density"]
    importances: Float[Tensor, " importance"]
    """Of the second feature; the first has 1."""

    def headlines(self) -> list[Headline]:
        rows = [
            Headline(
                f"median dimensionality of {len(self.norms)} features in {self.width} dimensions",
                self.median[0],
                self.random.median().item(),
                tuple(self.median[1:]),
                note="control: random directions of equal lengths; 1: a dimension of its own",
            ),
            Headline(
                "dimensions in use, sum of dimensionalities",
                self.dimensionality.sum().item(),
                self.random.sum().item(),
                note=f"of {self.width}; ‖W‖² {self.norms.square().sum().item():.4g}",
            ),
        ]
        if self.loss:
            rows.append(
                Headline(
                    "loss",
                    self.loss[0],
                    self.loss_without,
                    tuple(self.loss[1:]),
                    self.loss[2] < self.loss_without,
                    "control: the least without superposition",
                )
            )
        return rows

    def figure(self) -> Figure:
        names = [str(number) for number in self.drawn]
        parts = [
            figures.heatmap(
                self.gram,
                title="Inner products of the features' vectors",
                x=names,
                y=names,
                x_label="feature",
                y_label="feature",
                value_label="W Wᵀ",
            ),
            figures.bars(
                names,
                {
                    "length": self.norms[self.drawn],
                    "dimensionality": self.dimensionality[self.drawn],
                    "of random directions": self.random[self.drawn],
                },
                title="Lengths and dimensionalities",
                y_label="length, share of a dimension",
            ),
            figures.histogram(
                {"features": self.dimensionality, "random directions": self.random},
                title="Dimensionality",
                x_label="share of a dimension",
                references=[("x", 1.0, "orthogonal"), ("x", 0.5, "antipodal"), ("x", 0.4, "pentagon")],
            ),
        ]
        if self.plane is not None:
            parts.append(
                figures.scatter(
                    self.plane[:, 0],
                    self.plane[:, 1],
                    title="The vectors",
                    x_label="dimension 0",
                    y_label="dimension 1",
                    labels=names,
                    references=[("x", 0.0, ""), ("y", 0.0, "")],
                )
            )
        if self.phases is not None:
            parts.append(
                figures.heatmap(
                    self.phases,
                    title="Two features in one dimension",
                    panels=["closed form", "trained"],
                    x=[f"{value:.2g}" for value in self.importances.tolist()],
                    y=[f"{value:.2g}" for value in self.densities.tolist()],
                    x_label="importance of the second feature",
                    y_label="density",
                    value_label="phase",
                    diverging=False,
                    caption="; ".join(f"{number}: {name}" for number, name in enumerate(PHASES)),
                )
            )
        return figures.group(
            parts, title=f"Superposition: {len(self.norms)} features in {self.width} dimensions"
        )


@method(needs=("embedding",))
def superposition(model: Model, *, weight: str = "W_E", grid: int = 0, seed: int = 0) -> Superposition:
    """How many dimensions each feature has to itself, when there are more features than dimensions.

    The features are the rows of `weight`, W_E, or the columns of W_U; of a transformer, its tokens. Those shorter
    than a tenth of the longest count as not represented. A `grid` other than 0 adds the phase diagram of two features
    in one dimension, in closed form and as toy models are trained, grid × grid of them. Raises VesaliusError if the
    model has no such weight.

    >>> from vesalius.testbed.toy_superposition import planted_superposition
    >>> superposition(planted_superposition("pentagon")).dimensionality
    tensor([0.4000, 0.4000, 0.4000, 0.4000, 0.4000])
    """
    if weight not in ("W_E", "W_U"):
        raise VesaliusError(f"weight is '{weight}'; expected W_E or W_U{nearest(weight, ('W_E', 'W_U'))}")
    if not model.has(weight):
        raise VesaliusError(f"{model.name} has no {weight}; it has W_E")
    vectors = model.weight(weight).float().cpu()
    vectors = vectors.T if weight == "W_U" else vectors
    norms, shares = vectors.norm(dim=1), dimensionality(vectors)
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(vectors.shape, generator=generator), dim=1)
    represented = shares[norms > 0.1 * norms.max()]
    drawn = norms.argsort(descending=True, stable=True)[:DRAWN].sort().values
    loss, without = _losses(model.module, seed) if isinstance(model.module, ToySuperposition) else ([], 0.0)
    importances, densities = torch.logspace(-1, 1, grid), torch.logspace(-2, 0, grid)
    return Superposition(
        weight=weight,
        width=vectors.shape[1],
        norms=norms,
        dimensionality=shares,
        interference=interference(vectors),
        random=dimensionality(directions * norms[:, None]),
        median=[represented.median().item(), *_median_interval(represented, generator)],
        drawn=drawn.tolist(),
        gram=vectors[drawn] @ vectors[drawn].T,
        plane=vectors[drawn] if vectors.shape[1] == 2 else None,
        loss=loss,
        loss_without=without,
        phases=_phases(densities, importances, seed) if grid else None,
        densities=densities,
        importances=importances,
    )


def _phases(
    densities: Float[Tensor, " density"], importances: Float[Tensor, " importance"], seed: int
) -> Int[Tensor, "panel density importance"]:
    density, importance = torch.cartesian_prod(densities, importances).unbind(1)
    both = torch.stack([best_phase(importance, density)[0], trained_phase(importance, density, seed=seed)])
    return both.view(2, len(densities), len(importances))


def _median_interval(values: Float[Tensor, " feature"], generator: torch.Generator) -> tuple[float, float]:
    """Bootstrap over features."""
    picked = torch.randint(len(values), (200, min(len(values), 2000)), generator=generator)
    low, high = values[picked].median(1).values.quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def _losses(module: ToySuperposition, seed: int) -> tuple[list[float], float]:
    """The loss on features drawn anew with its interval, and the least without superposition."""
    features = sample(module.density, SAMPLES, generator=torch.Generator().manual_seed(seed))
    errors = ((module(features) - features).square() * module.importance).sum(1)
    without = loss_without(module.density, module.importance, n_hidden=module.weight.shape[1])
    return [errors.mean().item(), *bootstrap(errors, seed=seed)], without
