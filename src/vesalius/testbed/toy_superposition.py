"""More features than dimensions: the toy models in which superposition was first understood.

Elhage et al. 2022 (Toy Models of Superposition, transformer-circuits.pub/2022/toy_model, arXiv 2209.10652).
A feature is 0 with probability 1 - density and else uniform in 0..1; the network is x̂ = ReLU(x W Wᵀ + b), W
[feature, hidden], and is trained on Σ importance · (x̂ - x)². Dense features: the most important get a dimension each
and the others none. Sparse ones share: antipodal pairs, then polygons.

Known in closed form: the arrangements and the dimensionality of their features (`GEOMETRIES`), the loss without
superposition (`loss_without`), and for two features and one dimension which arrangement is best (`best_phase`).
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vesalius.architectures import Architecture, Shape
from vesalius.errors import VesaliusError, nearest
from vesalius.model import Model

PHASES = ("first feature alone", "second feature alone", "both, antipodal")
ARCHITECTURE = Architecture(
    name="toy-superposition",
    modules=("ToySuperposition",),
    sites={"embed": "hidden:out", "logits": "output:out"},
    weights={
        "W_E": lambda module, layer: module.weight,
        "W_U": lambda module, layer: module.weight.T,
        "b_U": lambda module, layer: module.bias,
    },
    shape=lambda module: Shape(0, d_model=module.weight.shape[1], d_vocab=module.weight.shape[0]),
    inputs="features",
    norm="none",
    positions="none",
    causal=False,
)


class ToySuperposition(nn.Module):
    """x̂ = ReLU(x W Wᵀ + b); `density` and `importance` say for which features it is meant."""

    density: Tensor
    importance: Tensor

    def __init__(
        self,
        weight: Float[Tensor, "feature hidden"],
        bias: Float[Tensor, " feature"],
        *,
        density: Float[Tensor, " feature"],
        importance: Float[Tensor, " feature"],
    ) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.register_buffer("density", density)
        self.register_buffer("importance", importance)
        self.hidden, self.output = nn.Identity(), nn.ReLU()

    def forward(self, features: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch feature"]:
        return self.output(self.hidden(features @ self.weight) @ self.weight.T + self.bias)


def toy_superposition(
    *,
    n_features: int = 5,
    n_hidden: int = 2,
    density: float = 0.05,
    decay: float = 0.9,
    steps: int = 1500,
    starts: int = 8,
    seed: int = 0,
) -> Model:
    """A trained toy model: the best of `starts`, feature i of importance `decay`^i."""
    importance = decay ** torch.arange(n_features).float()
    densities = torch.full((n_features,), density)
    stacked = [part.expand(starts, -1) for part in (densities, importance)]
    weight, bias, losses = trained(*stacked, n_hidden=n_hidden, steps=steps, seed=seed)
    best = int(losses.argmin())
    module = ToySuperposition(weight[best], bias[best], density=densities, importance=importance)
    return Model(module, architecture=ARCHITECTURE, name=f"toy-superposition {n_features}→{n_hidden}")


def planted_superposition(geometry: str, *, density: float = 0.05) -> Model:
    """An arrangement by hand, without bias: one of `GEOMETRIES`."""
    if geometry not in GEOMETRIES:
        raise VesaliusError(
            f"'{geometry}' is no arrangement; expected {', '.join(GEOMETRIES)}{nearest(geometry, GEOMETRIES)}"
        )
    weight, _ = GEOMETRIES[geometry]
    count = len(weight)
    module = ToySuperposition(
        weight.clone(),
        torch.zeros(count),
        density=torch.full((count,), density),
        importance=torch.ones(count),
    )
    return Model(module, architecture=ARCHITECTURE, name=f"planted {geometry}")


def sample(
    density: Float[Tensor, "*instance feature"], count: int, *, generator: torch.Generator
) -> Float[Tensor, "count *instance feature"]:
    """Features as the toy models get them."""
    shape = (count, *density.shape)
    present = torch.rand(shape, generator=generator) < density
    return torch.rand(shape, generator=generator) * present


@torch.enable_grad()
def trained(
    density: Float[Tensor, "instance feature"],
    importance: Float[Tensor, "instance feature"],
    *,
    n_hidden: int,
    steps: int,
    batch: int = 512,
    rate: float = 0.02,
    seed: int = 0,
) -> tuple[
    Float[Tensor, "instance feature hidden"], Float[Tensor, "instance feature"], Float[Tensor, " instance"]
]:
    """Weights, biases and losses of many instances trained at once, by Adam with a rate that falls to 0."""
    generator = torch.Generator().manual_seed(seed)
    instances, features = density.shape
    start = torch.randn(instances, features, n_hidden, generator=generator) / math.sqrt(features)
    weight, bias = start.requires_grad_(), torch.zeros(instances, features, requires_grad=True)
    optimiser = torch.optim.Adam([weight, bias], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        _losses(weight, bias, sample(density, batch, generator=generator), importance).sum().backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        losses = _losses(weight, bias, sample(density, 8 * batch, generator=generator), importance)
    return weight.detach(), bias.detach(), losses


def _losses(weight: Tensor, bias: Tensor, features: Tensor, importance: Tensor) -> Float[Tensor, " instance"]:
    hidden = torch.einsum("bif,ifh->bih", features, weight)
    output = (torch.einsum("bih,ifh->bif", hidden, weight) + bias).relu()
    return ((output - features).square() * importance).sum(2).mean(0)


def loss_without(
    density: Float[Tensor, " feature"], importance: Float[Tensor, " feature"], *, n_hidden: int
) -> float:
    """The least loss without superposition: the features that cost most have a dimension each, the others a bias.

    A feature that is not represented costs its importance times its variance, p/3 - p²/4.
    """
    costs = importance * (density / 3 - density.square() / 4)
    return costs.sort().values[: max(len(costs) - n_hidden, 0)].sum().item()


def best_phase(
    importance: Float[Tensor, "*grid"], density: Float[Tensor, "*grid"]
) -> tuple[Int[Tensor, "*grid"], Float[Tensor, "phase *grid"]]:
    """For two features, of importance 1 and `importance`, in one dimension: the best of `PHASES`, and all losses.

    An antipodal pair errs only where both are present, and then each by the smaller: E[min²] = 1/6.
    """
    variance = density / 3 - density.square() / 4
    losses = torch.stack([importance * variance, variance, (1 + importance) * density.square() / 6])
    return losses.argmin(0), losses


def trained_phase(
    importance: Float[Tensor, " grid"],
    density: Float[Tensor, " grid"],
    *,
    steps: int = 600,
    starts: int = 8,
    seed: int = 0,
) -> Int[Tensor, " grid"]:
    """The phase that training finds for two features in one dimension, the best of some starts."""
    count = len(importance)
    stacked = torch.stack([torch.ones_like(importance), importance], 1).repeat(starts, 1)
    densities = density[:, None].expand(-1, 2).repeat(starts, 1)
    weight, _, losses = trained(densities, stacked, n_hidden=1, steps=steps, batch=256, seed=seed)
    best = losses.view(starts, count).argmin(0) * count + torch.arange(count)
    first, second = weight[best, :, 0].unbind(1)
    alone = torch.where(first.abs() > second.abs(), 0, 1)
    return torch.where(torch.minimum(first.abs(), second.abs()) > 0.5, 2, alone)


def _polygon(count: int) -> Float[Tensor, "count 2"]:
    angles = 2 * math.pi * torch.arange(count) / count
    return torch.stack([angles.cos(), angles.sin()], 1)


def _antiprism() -> Float[Tensor, "8 3"]:
    """Two squares, one turned by 45°, as far from the middle as makes D = 3/8 for all."""
    squares = torch.cat([_polygon(4), _polygon(8)[1::2]])
    heights = torch.tensor([1.0] * 4 + [-1.0] * 4)[:, None] * math.sqrt(0.5)
    return nn.functional.normalize(torch.cat([squares, heights], 1), dim=1)


_TETRAHEDRON = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / math.sqrt(3)
GEOMETRIES: dict[str, tuple[Tensor, float]] = {
    "orthogonal": (torch.eye(4), 1.0),
    "antipodal": (torch.cat([torch.eye(2), -torch.eye(2)]), 1 / 2),
    "triangle": (_polygon(3), 2 / 3),
    "pentagon": (_polygon(5), 2 / 5),
    "tetrahedron": (_TETRAHEDRON, 3 / 4),
    "square antiprism": (_antiprism(), 3 / 8),
}
"""Arrangements of unit vectors, and the dimensionality that each vector has."""
