"""Gratings: plane waves that fill the receptive field, or a round window of it (Campbell & Robson 1968)."""

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius.stimuli.canvas import BLACK, BLUE, GREY, WHITE, YELLOW, Colour, blend, faded, frame, wave
from vesalius.stimuli.family import Axis, family


@family(
    Axis("orientation", "°", lambda _: torch.arange(0.0, 360.0, 15.0), period=360.0),
    Axis("wavelength", "px", lambda field: field / torch.tensor([1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0])),
    variants={"grey": {}, "shifted": {"phase": -90.0}, "colour": {"colour": YELLOW, "background": BLUE}},
)
def grating(
    orientation: Float[Tensor, " picture"],
    wavelength: Float[Tensor, " picture"],
    *,
    size: int,
    centre: tuple[float, float] | None = None,
    phase: float = 0.0,
    colour: Colour = WHITE,
    background: Colour = BLACK,
    fade: float | None = None,
    fade_over: float = 10.0,
    fade_colour: Colour = GREY,
) -> Float[Tensor, "picture 3 size size"]:
    """A wave of this wavelength (px) along the orientation, with a crest in the middle at `phase` 0 (degrees).

    >>> grating(torch.tensor([0.0]), torch.tensor([4.0]), size=5)[0, 0, 0].round(decimals=2)
    tensor([0.0500, 0.5000, 0.9500, 0.5000, 0.0500])
    """
    along, across = frame(orientation, size=size, centre=centre)
    crests = wave(along, wavelength=wavelength, direction=orientation, phase=phase)
    return faded(
        blend(0.5 + 0.5 * crests, colour, background),
        torch.hypot(along, across),
        beyond=fade,
        over=fade_over,
        colour=fade_colour,
    )
