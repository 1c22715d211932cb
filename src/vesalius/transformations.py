"""What can be done to a picture about a point: turn it, mirror it, magnify it, turn its hues.

The transformations under which families of features are found (Olah et al. 2021, Naturally Occurring Equivariance,
distill.pub/2020/circuits/equivariance). Each comes in equal steps, of which some come full circle. Only a disc about
the point is kept, and fades into grey, so that no corner of a turned picture tells by how much it was turned.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample

from vesalius.errors import VesaliusError, nearest

Pictures = Float[Tensor, "picture channel height width"]
OCTAVES = 2.0
"""How much larger the largest picture of a scale is than the smallest: four times."""
FADE = 3.0
"""Pixels over which the disc dissolves into grey."""


@dataclass(frozen=True)
class Transformation:
    """`steps` equal amounts in `unit`s; `cyclic` if the last is followed by the first."""

    name: str
    unit: str
    cyclic: bool
    amounts: Callable[[int], Float[Tensor, " step"]]
    source: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    """From coordinates right and up of the point, and an amount: where a pixel comes from."""


def _still(x: Tensor, y: Tensor, amount: Tensor) -> tuple[Tensor, Tensor]:
    return x, y


def _turned(x: Tensor, y: Tensor, degrees: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    return x * cos + y * sin, y * cos - x * sin


def _mirrored(x: Tensor, y: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    return x * (1 - 2 * times), y


def _magnified(x: Tensor, y: Tensor, octaves: Tensor) -> tuple[Tensor, Tensor]:
    return x * 2**-octaves, y * 2**-octaves


TRANSFORMATIONS = {
    kind.name: kind
    for kind in (
        Transformation("rotation", "°", True, lambda steps: torch.arange(steps) * (360 / steps), _turned),
        Transformation("reflection", "flip", True, lambda steps: torch.arange(2.0), _mirrored),
        Transformation(
            "scale",
            "octave",
            False,
            lambda steps: torch.linspace(-OCTAVES / 2, OCTAVES / 2, steps),
            _magnified,
        ),
        Transformation("hue", "°", True, lambda steps: torch.arange(steps) * (360 / steps), _still),
    )
}


def transformation(name: str) -> Transformation:
    """The transformation of this name; raises VesaliusError with the nearest names for another."""
    if name not in TRANSFORMATIONS:
        raise VesaliusError(
            f"there is no transformation '{name}'; expected one of {', '.join(TRANSFORMATIONS)}"
            f"{nearest(name, TRANSFORMATIONS)}"
        )
    return TRANSFORMATIONS[name]


def transformed(
    pictures: Pictures,
    kind: Transformation,
    amount: float,
    *,
    centre: tuple[float, float] | None = None,
    radius: float | None = None,
) -> Pictures:
    """Pictures in 0..1 transformed by an amount about `centre` (row, column; the middle), in a disc of `radius` px.

    Rotations are counter-clockwise, a reflection exchanges left and right, 1 octave is twice as large. Hues turn
    about the grey axis at half the saturation, where every hue exists. Radius None keeps the largest disc that fits.

    >>> corner = torch.zeros(1, 1, 3, 3)
    >>> corner[..., 0, 2] = 1
    >>> transformed(corner, TRANSFORMATIONS["rotation"], 90.0, radius=9).round()[0, 0, 0]
    tensor([1., 0., 0.])
    """
    height, width = pictures.shape[2:]
    row, column = centre or ((height - 1) / 2, (width - 1) / 2)
    right = torch.arange(width) - column
    up = row - torch.arange(height)
    x, y = (axis.to(pictures) for axis in (right.expand(height, width), up[:, None].expand(height, width)))
    within = radius if radius is not None else min(row + 1, column + 1, height - row, width - column)
    if kind.name == "hue":
        moved = _hue(pictures, amount)
    else:
        x_from, y_from = kind.source(x, y, torch.tensor(amount).to(pictures))
        places = torch.stack([(x_from + column + 0.5) / width, (row - y_from + 0.5) / height], -1) * 2 - 1
        moved = grid_sample(
            pictures, places.expand(len(pictures), -1, -1, -1), padding_mode="reflection", align_corners=False
        )
    mask = ((within - torch.hypot(x, y)) / FADE).clamp(0, 1)
    return 0.5 + (moved - 0.5) * mask


def _hue(pictures: Pictures, degrees: float) -> Pictures:
    """The part of every colour that is not grey, halved and turned about the grey axis."""
    if pictures.shape[1] != 3:
        raise VesaliusError(f"pictures of {pictures.shape[1]} channels have no hue; expected 3")
    turn = torch.tensor(degrees).deg2rad()
    grey = torch.full((3, 3), 1 / 3)
    across = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / 3**0.5
    matrix = grey + 0.5 * (turn.cos() * (torch.eye(3) - grey) + turn.sin() * across)
    return einsum(matrix.to(pictures), pictures, "new old, picture old y x -> picture new y x")
