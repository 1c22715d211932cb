"""Bars: straight contours of two ends, the stimulus of simple and end-stopped cells (Hubel & Wiesel 1962, 1965)."""

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius.stimuli.canvas import (
    BLACK,
    BLUE,
    GREY,
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


@family(
    Axis("orientation", "°", lambda _: torch.arange(0.0, 180.0, 7.5), period=180.0),
    Axis("length", "px", lambda field: field * torch.tensor([0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 2.0])),
    variants={
        "bright": {},
        "dark": {"colour": BLACK, "background": WHITE},
        "on grey": {"background": GREY},
        "colour": {"colour": YELLOW, "background": BLUE},
    },
)
def bar(
    orientation: Float[Tensor, " picture"],
    length: Float[Tensor, " picture"],
    *,
    size: int,
    centre: tuple[float, float] | None = None,
    width: float = 3.0,
    colour: Colour = WHITE,
    background: Colour = BLACK,
) -> Float[Tensor, "picture 3 size size"]:
    """A bar in the middle, `length` px long and `width` px wide, perpendicular to its orientation (0 is upright).

    >>> bar(torch.tensor([0.0]), torch.tensor([3.0]), size=5, width=1.0)[0, 0, :, 2]
    tensor([0., 1., 1., 1., 0.])
    """
    along, across = frame(orientation, size=size, centre=centre)
    inside = coverage(along.abs() - width / 2) * coverage(across.abs() - beside(length) / 2)
    return faded(blend(inside, colour, background), along, beyond=None)
