"""Linear probes, and those that a formula gives: ridge regression, differences of means, linear discriminants.

All are made of the moments of the activations, which one pass yields, and of one inverse for each layer, which all
targets share.

- `ridge` regresses the indicator of every class;
- `mass_mean` is the difference of the classes' means (Marks & Tegmark 2023, arXiv 2310.06824);
- `lda` the same corrected by the covariance within classes (Fisher 1936). A target changes the covariance by as many
  directions as it has classes, so its inverse follows from the shared one (Woodbury 1950).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from vesalius.dictionaries.probe import ProbeDictionary
from vesalius.errors import VesaliusError
from vesalius.probes.labelled import Labelled
from vesalius.probes.moments import Moments, moments

PENALTY = 1e-3


@dataclass(frozen=True, eq=False)
class LinearProbes:
    """A linear probe for every layer and target: score of a class = activation · weight + bias."""

    weight: Float[Tensor, "layer target width class"]
    bias: Float[Tensor, "layer target class"]
    kind: str
    link: Literal["softmax", "shares"] = "softmax"
    """What makes probabilities of scores: `shares` takes them for probabilities and cuts what is not in 0..1."""

    def logits(self, acts: Float[Tensor, "*layer row width"]) -> Float[Tensor, "layer row target class"]:
        """The score of every class; differentiable."""
        layers, targets, width, _ = self.weight.shape
        acts = layered(acts, layers=layers, width=width)
        flat = rearrange(self.weight, "l t width c -> l width (t c)")
        scores = torch.bmm(acts.to(flat), flat)
        return rearrange(scores, "l row (t c) -> l row t c", t=targets) + self.bias[:, None]

    def probabilities(
        self, acts: Float[Tensor, "*layer row width"]
    ) -> Float[Tensor, "layer row target class"]:
        """The probability of every class."""
        scores = self.logits(acts)
        if self.link == "softmax":
            return scores.softmax(-1)
        return scores.clamp(1e-6, 1) / scores.clamp(1e-6, 1).sum(-1, keepdim=True)

    def predictions(self, acts: Float[Tensor, "*layer row width"]) -> Int[Tensor, "layer row target"]:
        """The likeliest class."""
        return self.logits(acts).argmax(-1)

    def direction(
        self, layer: int, target: int, *, of: int, less: int | None = None
    ) -> Float[Tensor, " width"]:
        """Of one class less another, or less the mean of all others."""
        weight = self.weight[layer, target]
        classes = weight.shape[1]
        others = [n for n in range(classes) if n != of] if less is None else [less]
        return weight[:, of] - weight[:, others].mean(1)

    def dictionary(
        self,
        layer: int,
        target: int = 0,
        *,
        site: str,
        classes: Sequence[str],
        name: str = "",
        about: dict | None = None,
    ) -> ProbeDictionary:
        """One of the probes, its classes named, as a dictionary of a site."""
        weight, bias = self.weight[layer, target], self.bias[layer, target]
        return ProbeDictionary(
            site, weight.cpu(), bias.cpu(), tuple(classes), name, {"kind": self.kind, **(about or {})}
        )


def layered(
    acts: Float[Tensor, "*layer row width"], *, layers: int, width: int
) -> Float[Tensor, "layer row width"]:
    """Activations of as many layers and units as probes read. Raises VesaliusError if they are not."""
    acts = acts if acts.dim() == 3 else acts[None]
    if (len(acts), acts.shape[2]) != (layers, width):
        raise VesaliusError(
            f"activations of {acts.shape[2]} units at {len(acts)} layers were given to probes of {width} at {layers}"
        )
    return acts


def ridge(labelled: Labelled, *, penalty: float = PENALTY) -> LinearProbes:
    """Ridge regression of every class's indicator; `penalty` in units of the mean variance of a layer's units.

    >>> acts = torch.tensor([[-1.0, 0.3], [-2.0, 0.1], [1.0, 0.2], [2.0, 0.4]])
    >>> ridge(Labelled.of(acts, torch.tensor([0, 0, 1, 1]))).predictions(acts).flatten().tolist()
    [0, 0, 1, 1]
    """
    seen = moments(labelled)
    weight = _times(seen.inverse(penalty), seen.means * seen.shares)
    return _probes(seen, weight, seen.shares.expand(labelled.layers, -1, -1), "ridge", link="shares")


def mass_mean(labelled: Labelled) -> LinearProbes:
    """Nearest class mean: the direction between two classes is the difference of their means."""
    seen = moments(labelled)
    between = (seen.means.square() * seen.shares).sum(2).mean(1)
    within = (seen.variance[:, None] - between).clamp(min=1e-12)
    return _discriminant(seen, seen.means / within[:, None, None], "mass_mean")


def lda(labelled: Labelled, *, penalty: float = PENALTY) -> LinearProbes:
    """Linear discriminants: differences of means, corrected by the covariance within the classes."""
    seen = moments(labelled)
    turned = _times(seen.inverse(penalty), seen.means)
    across = einsum(seen.means, turned, "l width c t, l width d t -> l t c d")
    within = torch.eye(labelled.classes).to(across) - rearrange(seen.shares, "c t -> t c 1") * across
    weight = einsum(turned, torch.linalg.inv(within), "l width c t, l t c d -> l width d t")
    return _discriminant(seen, weight, "lda")


def _times(inverse: Tensor, vectors: Float[Tensor, "layer width class target"]) -> Tensor:
    return rearrange(inverse @ vectors.flatten(2), "l w (c t) -> l w c t", c=vectors.shape[2])


def _discriminant(
    seen: Moments, weight: Float[Tensor, "layer width class target"], kind: str
) -> LinearProbes:
    """The score of a class is its log likelihood but for what all classes share."""
    half = einsum(weight, seen.means, "l width c t, l width c t -> l c t") / 2
    return _probes(seen, weight, seen.shares.clamp(min=1e-9).log() - half, kind)


def _probes(
    seen: Moments,
    weight: Float[Tensor, "layer width class target"],
    bias: Float[Tensor, "layer class target"],
    kind: str,
    link: Literal["softmax", "shares"] = "softmax",
) -> LinearProbes:
    """From weights on activations less their centre."""
    bias = bias - einsum(weight, seen.centre, "l width c t, l width t -> l c t")
    return LinearProbes(
        rearrange(weight, "l width c t -> l t width c").float(),
        rearrange(bias, "l c t -> l t c").float(),
        kind,
        link,
    )
