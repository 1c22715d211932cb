"""Curves, angles and lines as one family: a corner of some angle whose tip is rounded by some radius.

As Lucid's stimulus of the same name (Cammarata et al. 2020, Curve Detectors, distill.pub/2020/circuits), written as
an exact distance: a wedge whose every point is `radius` px further out is a wedge with a round tip.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius.stimuli.canvas import (
    BLACK,
    BLUE,
    GREY,
    RED,
    WHITE,
    YELLOW,
    Colour,
    beside,
    blend,
    coverage,
    faded,
    frame,
)
from vesalius.stimuli.family import Axis, family

LINE = 1e10
"""The radius in px that an infinite one is drawn with: straight to 1e-6 px in any picture."""

CURVATURES = (0.0, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
"""What `radius` is asked at: half a receptive field over these; 0 is a line."""


@family(
    Axis("orientation", "°", lambda _: torch.arange(0.0, 360.0, 15.0), period=360.0),
    Axis("radius", "px", lambda field: torch.tensor([field / 2 / c if c else math.inf for c in CURVATURES])),
    variants={
        "filled": {},
        "filled, dark": {"colour": BLACK, "background": WHITE},
        "line": {"filled": False},
        "line, dark": {"filled": False, "colour": BLACK, "background": WHITE},
        "filled, colour": {"colour": YELLOW, "background": BLUE},
        "line, colour": {"filled": False, "colour": RED, "background": GREY},
    },
)
def rounded_corner(
    orientation: Float[Tensor, " picture"],
    radius: Float[Tensor, " picture"],
    *,
    size: int,
    centre: tuple[float, float] | None = None,
    angular_width: float = 90.0,
    filled: bool = True,
    boundary_width: float = 3.0,
    colour: Colour = WHITE,
    background: Colour = BLACK,
    fade: float | None = None,
    fade_over: float = 10.0,
    fade_colour: Colour = GREY,
) -> Float[Tensor, "picture 3 size size"]:
    """A curve through the origin that bulges towards its orientation (see `vesalius.stimuli`), of a radius in px.

    Radius 0 is an angle, infinity a line. `angular_width` are the degrees between the two straight legs: 180 is a line
    whatever the radius, 0 a U. `filled` paints the inside, else the contour alone, `boundary_width` px wide. Beyond
    `fade` px of the origin the picture dissolves into `fade_colour`.

    >>> rounded_corner(torch.tensor([0.0]), torch.tensor([2.0]), size=5)[0, 0, 2]
    tensor([1.0000, 1.0000, 0.5000, 0.0000, 0.0000])
    """
    along, across = frame(orientation + 180, size=size, centre=centre)  # to the centre of curvature
    distance = _distance(along, across.abs(), beside(radius.clamp(0, LINE)), math.radians(angular_width / 2))
    inside = coverage(distance if filled else distance.abs() - boundary_width / 2)
    return faded(
        blend(inside, colour, background),
        torch.hypot(along, across),
        beyond=fade,
        over=fade_over,
        colour=fade_colour,
    )


def _distance(along: Tensor, across: Tensor, radius: Tensor, half: float) -> Tensor:
    """Signed distance to the contour, negative inside; the tip is the origin, `along` points into the inside.

    The circle's distance hypot(along - r, across) - r is divided by r for large r, where it would cancel.
    """
    bend = 1 / radius.clamp(min=1)
    wide = (bend * (along.square() + across.square()) - 2 * along) / (
        torch.hypot(bend * along - 1, bend * across) + 1
    )
    tip = torch.where(radius >= 1, wide, torch.hypot(along - radius, across) - radius)
    legs = -along * math.sin(half) + across * math.cos(half) - radius * (1 - math.sin(half))
    beside_legs = (along - radius) * math.cos(half) + across * math.sin(half) > 0
    return torch.where(beside_legs, legs, tip)
