"""A feature: one direction at a site, whatever found it; and the contract of the sets that features come from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius.errors import VesaliusError
from vesalius.site import Site


@dataclass(frozen=True, eq=False)
class Feature:
    """A direction in the activations of one site, of conv maps, token streams and plain vectors alike.

    >>> curve = Feature.parse("mixed3b[379]")
    >>> curve.site, curve.index, str(curve)
    ('mixed3b', 379, 'mixed3b[379]')
    """

    site: str
    """The address, without an index."""
    index: int | None = None
    """Its number in its dictionary; for a neuron, the channel."""
    read: Float[Tensor, " width"] | None = None
    """The direction whose inner product with an activation is the feature's value; None: the unit vector `index`."""
    write: Float[Tensor, " width"] | None = None
    """What the feature adds to the activation per unit of value; None: the same as `read`."""
    label: str = ""
    nonlinear: Callable[[Float[Tensor, "*batch width"]], Float[Tensor, "*batch"]] | None = None
    """Its value of activations, if that is not an inner product, such as a latent's code; units are the last axis."""

    def __post_init__(self) -> None:
        if self.read is None and self.index is None:
            raise VesaliusError(f"a feature at '{self.site}' was given neither an index nor a direction")

    @classmethod
    def parse(cls, text: str) -> "Feature":
        """A neuron by its address, as in `mixed3b[379]`; raises VesaliusError if it does not name one unit."""
        site = Site.parse(text)
        if not isinstance(site.index, int):
            raise VesaliusError(f"'{text}' does not name one unit; expected SITE[UNIT], as in 'mixed3b[379]'")
        return cls(str(site.whole()), site.index)

    def __str__(self) -> str:
        return self.label or f"{self.site}[{'direction' if self.index is None else self.index}]"

    def __repr__(self) -> str:
        return f"Feature({self})"

    def value(self, acts: Float[Tensor, "batch *axes"]) -> Float[Tensor, "batch *positions"]:
        """The value at every position: `[batch, channel, row, column]` loses its second axis, others their last.

        Raises VesaliusError if the activations are of another width.
        """
        axis = channel_axis(acts)
        width = acts.shape[axis]
        if self.nonlinear is not None:
            return self.nonlinear(acts.movedim(axis, -1))
        if self.read is not None:
            return torch.tensordot(acts.movedim(axis, -1), self.vector(width).to(acts), dims=1)
        assert self.index is not None  # as __post_init__ has made sure
        if not 0 <= self.index < width:
            raise VesaliusError(f"{self} is beyond the {width} units of '{self.site}'")
        return acts.select(axis, self.index)

    def vector(self, width: int) -> Float[Tensor, " width"]:
        """The direction it is read by, in a site of `width` units."""
        if self.read is None:
            return torch.nn.functional.one_hot(torch.tensor(self.index), width).float()
        if self.read.shape != (width,):
            raise VesaliusError(f"{self} has {len(self.read)} components; '{self.site}' has {width} units")
        return self.read

    def written(self, width: int) -> Float[Tensor, " width"]:
        """The direction it adds to, in a site of `width` units."""
        return self.vector(width) if self.write is None else self.write


@runtime_checkable
class Dictionary(Protocol):
    """A set of features of one site: neurons, principal components, latents, probe weights."""

    @property
    def site(self) -> str: ...
    def __getitem__(self, index: int) -> Feature: ...
    def encode(self, acts: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch feature"]: ...
    def decode(self, codes: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch width"]: ...


def direction(site: str, vector: Float[Tensor, " width"], *, label: str = "") -> Feature:
    """Any vector as a feature of a site."""
    return Feature(str(Site.parse(site)), None, vector, label=label)


def channel_axis(acts: Tensor) -> int:
    """The axis of the units: the second of conv maps `[batch, channel, row, column]`, else the last."""
    return 1 if acts.dim() == 4 else acts.dim() - 1
