"""Objectives: what a picture is to make large, as numbers with an algebra.

An objective reads the activations of a group of pictures and gives each its value: `mean(curve)`,
`centre(curve)`, `cosine(feature)`, `spatial(feature, row=3, column=4)`, `diversity("mixed3b")`. They add up, take
factors and change sign, `mean(a) + 0.5 * mean(b) - mean(c)`, and say in words what they are. After Lucid (Olah,
Mordvintsev & Schubert 2017, distill.pub/2017/feature-visualization).
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from vesalius.dictionaries import Feature
from vesalius.dictionaries.feature import channel_axis
from vesalius.errors import VesaliusError

Acts = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Objective:
    """A value for each picture of a group, from the activations at `sites`; larger is better.

    >>> both = mean(Feature("mixed3b", 379)) - 0.5 * mean(Feature("mixed3a", 12))
    >>> str(both), both.sites
    ('mean of mixed3b[379] − 0.5 × mean of mixed3a[12]', ('mixed3b', 'mixed3a'))
    """

    value: Callable[[Acts], Float[Tensor, " picture"]]
    sites: tuple[str, ...]
    description: str
    key: str
    """The description, with the digest of every vector: the same key is the same objective."""

    def __str__(self) -> str:
        return self.description

    def __add__(self, other: "Objective") -> "Objective":
        minus = other.description.startswith("−")
        rest = other.description.removeprefix("−") if minus else other.description
        return Objective(
            lambda acts: self.value(acts) + other.value(acts),
            tuple(dict.fromkeys(self.sites + other.sites)),
            f"{self.description} {'−' if minus else '+'} {rest}",
            f"({self.key}) + ({other.key})",
        )

    def __mul__(self, factor: float) -> "Objective":
        words = (
            f"({self.description})"
            if " + " in self.description[1:] or " − " in self.description[1:]
            else self.description
        )
        times = {1.0: "", -1.0: "−"}.get(factor, f"{factor:g} × ".replace("-", "−"))
        return Objective(
            lambda acts: factor * self.value(acts), self.sites, times + words, f"{factor!r} * ({self.key})"
        )

    __rmul__ = __mul__

    def __neg__(self) -> "Objective":
        return self * -1

    def __sub__(self, other: "Objective") -> "Objective":
        return self + -other


def mean(feature: Feature) -> Objective:
    """The feature's mean over all positions: a channel, a direction or a latent (Lucid's `channel`)."""
    return _of(feature, "mean of", lambda values: values.flatten(1).mean(1))


def centre(feature: Feature) -> Objective:
    """The feature at the middle of the map: one neuron. Of an even side the later of the two middle positions."""

    def middle(values: Tensor) -> Tensor:
        for _ in values.shape[1:]:
            values = values[:, values.shape[1] // 2]
        return values

    return _of(feature, "centre of", middle)


def spatial(feature: Feature, *, row: int, column: int) -> Objective:
    """The feature at one position of the map. Raises VesaliusError, once it runs, if the map is smaller."""

    def there(values: Tensor) -> Tensor:
        if values.dim() != 3 or not (0 <= row < values.shape[1] and 0 <= column < values.shape[2]):
            raise VesaliusError(
                f"row {row}, column {column} is not in the map of '{feature.site}', "
                f"of shape {tuple(values.shape[1:])}"
            )
        return values[:, row, column]

    return _of(feature, f"row {row}, column {column} of", there)


def cosine(feature: Feature, *, power: float = 2.0) -> Objective:
    """Mean of `inner product × max(0.1, cosine)^power`: the direction alone, rather than all that goes with it."""

    def value(acts: Acts) -> Tensor:
        activations = acts[feature.site]
        axis = channel_axis(activations)
        vector = feature.vector(activations.shape[axis]).to(activations)
        inner = feature.value(activations)
        lengths = activations.norm(dim=axis) * vector.norm() + 1e-6
        return (inner * (inner / lengths).clamp_min(0.1) ** power).flatten(1).mean(1)

    return Objective(
        value, (feature.site,), f"cosine^{power:g} with {feature}", f"cosine {power!r} {identity(feature)}"
    )


def diversity(site: str) -> Objective:
    """Minus how alike the textures of a group of pictures are: mean cosine of each one's Gram matrix with the others'.

    A Gram matrix holds the products of all pairs of channels, summed over positions. 0 means nothing in common,
    -1 the same texture; a picture alone has 0.
    """

    def value(acts: Acts) -> Tensor:
        activations = acts[site].flatten(2) if channel_axis(acts[site]) == 1 else acts[site].mT
        grams = einsum(activations, activations, "picture a at, picture b at -> picture a b").flatten(1)
        grams = torch.nn.functional.normalize(grams, dim=1)
        alike = grams @ grams.T - torch.eye(len(grams)).to(grams)
        return -alike.sum(1) / max(1, len(grams) - 1)

    return Objective(value, (site,), f"diversity at {site}", f"diversity {site}")


OBJECTIVES = {"mean": mean, "centre": centre, "cosine": cosine}


def identity(feature: Feature) -> str:
    """The feature's address, and the digest of its direction if it has one of its own."""
    if feature.read is None:
        return f"{feature.site}[{feature.index}]"
    vector = feature.read.detach().cpu().float().contiguous()
    return f"{feature.site}[{hashlib.sha256(vector.numpy().tobytes()).hexdigest()[:16]}]"


def _of(feature: Feature, words: str, reduce: Callable[[Tensor], Tensor]) -> Objective:
    return Objective(
        lambda acts: reduce(feature.value(acts[feature.site])),
        (feature.site,),
        f"{words} {feature}",
        f"{words} {identity(feature)}",
    )
