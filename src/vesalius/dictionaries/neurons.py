"""Neurons: the standard basis of a site, one feature for each channel or unit."""

from dataclasses import dataclass

from torch import Tensor

from vesalius.dictionaries.feature import Feature
from vesalius.site import Site


@dataclass(frozen=True)
class Neurons:
    """The units of a site as they are: codes are activations.

    >>> neurons("mixed3b")[379]
    Feature(mixed3b[379])
    """

    site: str

    def __getitem__(self, index: int) -> Feature:
        return Feature(self.site, index)

    def encode(self, acts: Tensor) -> Tensor:
        return acts

    def decode(self, codes: Tensor) -> Tensor:
        return codes


def neurons(site: str | Site) -> Neurons:
    """The dictionary of a site's own units."""
    return Neurons(str(Site.parse(site).whole()))
