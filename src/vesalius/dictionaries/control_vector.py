"""Control vectors: one direction for each of several layers, added to the residual stream to steer by a concept.

They form a vector space: `polite + 0.5 * cheerful - angry` is a control vector too (Ilharco et al. 2022,
arXiv 2212.04089, for weights; Vogel 2024 for activations).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius.dictionaries.feature import Feature
from vesalius.errors import VesaliusError


@dataclass(frozen=True, eq=False)
class ControlVector:
    """Layer → what is added to `resid_post` of that layer at strength 1, and whose network it was found in.

    >>> up = ControlVector({3: torch.tensor([1.0, 0.0])}, label="up")
    >>> (up - 2 * up).directions[3]
    tensor([-1., 0.])
    """

    directions: dict[int, Float[Tensor, " d_model"]]
    model: str = ""
    """The network's name, and the sha256 of its weights; empty if not known."""
    model_hash: str = ""
    family: str = ""
    label: str = ""

    def __post_init__(self) -> None:
        widths = {tuple(direction.shape) for direction in self.directions.values()}
        if len(widths) != 1 or len(next(iter(widths))) != 1:
            shapes = ", ".join(map(str, widths)) or "none"
            raise VesaliusError(
                f"a control vector was given directions of shapes {shapes}; expected one width at every layer"
            )

    @property
    def layers(self) -> list[int]:
        return sorted(self.directions)

    @property
    def width(self) -> int:
        return len(next(iter(self.directions.values())))

    def __getitem__(self, layer: int) -> Feature:
        """The direction of one layer as a feature of `resid_post`."""
        if layer not in self.directions:
            raise VesaliusError(
                f"{self.label or 'the control vector'} has no layer {layer}; it has {self.layers}"
            )
        return Feature(f"resid_post@{layer}", layer, self.directions[layer], label=f"{self.label}@{layer}")

    def __add__(self, other: "ControlVector") -> "ControlVector":
        known = {vector.model_hash for vector in (self, other) if vector.model_hash}
        if self.width != other.width or len(known) > 1:
            raise VesaliusError(
                f"a control vector of {self.model or 'a network'} (width {self.width}) and one of "
                f"{other.model or 'a network'} (width {other.width}) do not add; expected two of one network"
            )
        zero = torch.zeros(self.width)
        both = {
            layer: self.directions.get(layer, zero) + other.directions.get(layer, zero)
            for layer in sorted({*self.layers, *other.layers})
        }
        whose = self if self.model_hash else other
        return replace(whose, directions=both, label=f"{self.label} + {other.label}".strip(" +"))

    def __mul__(self, factor: float) -> "ControlVector":
        scaled = {layer: factor * direction for layer, direction in self.directions.items()}
        return replace(self, directions=scaled, label=f"{factor:g} {self.label}".strip())

    __rmul__ = __mul__

    def __neg__(self) -> "ControlVector":
        return self * -1.0

    def __sub__(self, other: "ControlVector") -> "ControlVector":
        return self + -other

    def at(self, layers: Sequence[int]) -> "ControlVector":
        """These layers alone. Raises VesaliusError for one it does not have."""
        return replace(self, directions={layer: self[layer].vector(self.width) for layer in layers})

    def normed_like(self, other: "ControlVector") -> "ControlVector":
        """Each layer's direction with the length that `other` has there."""
        return replace(
            self,
            directions={
                layer: direction * other.directions[layer].norm() / direction.norm().clamp(min=1e-30)
                for layer, direction in self.directions.items()
            },
        )

    def random_like(self, seed: int) -> "ControlVector":
        """Directions drawn at random, each of the same length: the control of steering."""
        generator = torch.Generator().manual_seed(
            7_919 + 104_729 * seed
        )  # not the stream that made the weights
        drawn = {layer: torch.randn(self.width, generator=generator) for layer in self.layers}
        return replace(self, directions=drawn, label=f"random {seed}").normed_like(self)

    def check(self, model: Any) -> "ControlVector":
        """Itself, if it fits the network, a `Model`. Raises VesaliusError if it is another's."""
        whose = f"the control vector {self.label!r} of {self.model}" if self.model else "the control vector"
        if self.width != model.d_model:
            raise VesaliusError(f"{whose} has width {self.width}; {model.name} has d_model {model.d_model}")
        if not 0 <= self.layers[0] <= self.layers[-1] < model.n_layers:
            raise VesaliusError(
                f"{whose} has a layer {self.layers[-1]}; {model.name} has layers 0 to {model.n_layers - 1}"
            )
        family = model.architecture.name
        if self.family and self.family != family:
            raise VesaliusError(f"{whose} is for the {self.family} family; {model.name} is {family}")
        if self.model_hash and self.model_hash != model.hash:
            raise VesaliusError(
                f"{whose} was found in other weights than those of {model.name}; expected one of the same network"
            )
        return self
