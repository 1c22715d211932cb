"""What linear probes need to know of labelled activations, in one pass over them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vesalius.errors import VesaliusError
from vesalius.probes.labelled import Labelled

JITTER = 1e-6
"""Added to every variance, as a share of it: what single precision may have lost of a covariance."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Means, covariance and class means of each layer, in double precision."""

    rows: int
    mean: Float[Tensor, "layer width"]
    covariance: Float[Tensor, "layer width width"]
    counts: Float[Tensor, "class target"]
    centre: Float[Tensor, "layer width target"]
    """The mean of the rows that have a label."""
    means: Float[Tensor, "layer width class target"]
    """Of the rows of each class, less `centre`; 0 for a class that does not occur."""

    @property
    def shares(self) -> Float[Tensor, "class target"]:
        """Of the labelled rows, those of each class."""
        return self.counts / self.counts.sum(0).clamp(min=1)

    @cached_property
    def variance(self) -> Float[Tensor, " layer"]:
        """The mean over the units of a layer."""
        return self.covariance.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)

    def inverse(self, penalty: float, *, scale: float = 1.0) -> Float[Tensor, "layer width width"]:
        """Of `scale` times the covariance plus `penalty` in units of the mean variance."""
        own = self.covariance.diagonal(dim1=1, dim2=2)
        ridge = self.variance[:, None] * (penalty + JITTER**2) + JITTER * own
        inner = scale * self.covariance + torch.diag_embed(ridge)
        return torch.cholesky_inverse(torch.linalg.cholesky(inner))


def moments(labelled: Labelled) -> Moments:
    """One pass; sums are taken about the mean of the first piece, so that nothing is lost where units are far from 0.

    Raises VesaliusError if an activation is NaN or infinite.
    """
    first, labels = next(labelled.again())
    shift = first.float().mean(1, keepdim=True)
    double = {"dtype": torch.float64, "device": first.device}
    layers, width, shape = labelled.layers, labelled.width, (labelled.classes, labelled.targets)
    sums = torch.zeros(layers, width, **double)
    gram = torch.zeros(layers, width, width, **double)
    counts, cross = torch.zeros(shape, **double), torch.zeros(layers, width, *shape, **double)
    for acts, labels in labelled.again():
        x = acts.float() - shift
        member = one_hot(labels, labelled.classes).to(x)
        sums += x.sum(1)
        gram += x.mT @ x
        counts += member.sum(0)
        cross += rearrange(x.mT @ member.flatten(1), "l w (c t) -> l w c t", c=labelled.classes)
    if not gram.isfinite().all():
        layer = int((~gram.isfinite()).flatten(1).any(1).nonzero()[0])
        raise VesaliusError(f"activations of layer {layer} are NaN or infinite; expected finite numbers")
    mean = sums / labelled.rows
    covariance = gram / labelled.rows - mean[:, :, None] * mean[:, None]
    centre = cross.sum(2) / counts.sum(0).clamp(min=1)
    means = torch.where(counts > 0, cross / counts.clamp(min=1) - centre[:, :, None], 0.0)
    shift = shift[:, 0].double()
    return Moments(labelled.rows, mean + shift, covariance, counts, centre + shift[:, :, None], means)


def spread(labelled: Labelled) -> tuple[Float[Tensor, "layer width"], Float[Tensor, "layer width"]]:
    """Mean and standard deviation of every unit; of one that never varies, 1."""
    shift = next(labelled.again())[0].float().mean(1, keepdim=True)
    sums = torch.zeros_like(shift[:, 0]).double()
    squares = torch.zeros_like(sums)
    for acts, _ in labelled.again():
        x = acts.float() - shift
        sums += x.sum(1)
        squares += x.square().sum(1)
    mean = sums / labelled.rows
    sd = (squares / labelled.rows - mean.square()).clamp(min=0).sqrt().float()
    sd = torch.where(sd > 1e-6 * sd.amax(1, keepdim=True), sd, 1.0)
    return mean.float() + shift[:, 0], sd


def one_hot(labels: Tensor, classes: int) -> Float[Tensor, "row class target"]:
    """1 at the class of each target; all 0 where it is not known."""
    return (labels[:, None] == torch.arange(classes, device=labels.device)[:, None]).float()
