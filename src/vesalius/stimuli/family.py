"""What a family of stimuli is: a function of two properties, the grid to ask over, and its looks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius.errors import VesaliusError, nearest

Draw = Callable[..., Float[Tensor, "picture 3 size size"]]


@dataclass(frozen=True)
class Axis:
    """One property of a family: its name, its unit, and the values to ask at for a receptive field of some size."""

    name: str
    unit: str
    values: Callable[[int], Float[Tensor, " value"]]
    period: float | None = None
    """After how much the pictures repeat: 360 for a curve, 180 for a bar; None for a property that does not turn."""


@dataclass(frozen=True)
class Family:
    """Stimuli of one kind: `draw(first, second, size=…)` and its `axes`, with named looks for tests of invariance."""

    name: str
    draw: Draw
    axes: tuple[Axis, Axis]
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Keyword arguments of `draw` by name of the look; the first is the plain one."""

    def grid(self, receptive_field: int) -> tuple[Float[Tensor, " first"], Float[Tensor, " second"]]:
        """The values of both axes that suit a receptive field of this many pixels."""
        return self.axes[0].values(receptive_field), self.axes[1].values(receptive_field)

    def pictures(
        self, receptive_field: int, *, size: int, centre: tuple[float, float] | None = None, variant: str = ""
    ) -> Float[Tensor, "picture 3 size size"]:
        """Every pair of the grid, the first axis slowest, in one of the family's looks."""
        first, second = self.grid(receptive_field)
        pairs = torch.cartesian_prod(first, second)
        looks = self.variants[variant] if variant else {}
        return self.draw(pairs[:, 0], pairs[:, 1], size=size, centre=centre, **looks)


_registry: dict[str, Family] = {}


def family(*axes: Axis, variants: Mapping[str, Mapping[str, Any]] | None = None) -> Callable[[Draw], Draw]:
    """Register a function as a family of stimuli; it keeps its name."""

    def register(draw: Draw) -> Draw:
        first, second = axes
        _registry[draw.__name__] = Family(draw.__name__, draw, (first, second), variants or {"plain": {}})
        return draw

    return register


def families() -> dict[str, Family]:
    """Every family by name."""
    return dict(sorted(_registry.items()))


def named(name: str) -> Family:
    """The family of this name; raises VesaliusError with the nearest names for another."""
    if name not in _registry:
        known = sorted(_registry)
        raise VesaliusError(
            f"there is no stimulus '{name}'; expected one of {', '.join(known)}{nearest(name, known)}"
        )
    return _registry[name]
