"""Gabor patches: a wave under a Gaussian window, what first layers are known to see (Daugman 1985)."""

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius.stimuli.canvas import BLACK, BLUE, WHITE, YELLOW, Colour, beside, blend, faded, frame, wave
from vesalius.stimuli.family import Axis, family


@family(
    Axis("orientation", "°", lambda _: torch.arange(0.0, 360.0, 15.0), period=360.0),
    Axis("wavelength", "px", lambda field: field / torch.tensor([1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0])),
    variants={
        "edge": {"phase": -90.0},
        "bright": {},
        "dark": {"phase": 180.0},
        "colour": {"phase": -90.0, "colour": YELLOW, "background": BLUE},
    },
)
def gabor(
    orientation: Float[Tensor, " picture"],
    wavelength: Float[Tensor, " picture"],
    *,
    size: int,
    centre: tuple[float, float] | None = None,
    phase: float = 0.0,
    widths: float = 0.4,
    colour: Colour = WHITE,
    background: Colour = BLACK,
) -> Float[Tensor, "picture 3 size size"]:
    """A wave of this wavelength (px) whose crests are perpendicular to the orientation, under a round Gaussian.

    The sd of the Gaussian is `widths` wavelengths. `phase` 0 has a bright crest in the middle, 180 a dark one, -90 an
    edge whose bright side lies towards the orientation. Far away the picture is the mean of both colours.
    """
    along, across = frame(orientation, size=size, centre=centre)
    window = torch.exp(-(along.square() + across.square()) / (2 * (widths * beside(wavelength)).square()))
    crests = wave(along, wavelength=wavelength, direction=orientation, phase=phase)
    return faded(blend(0.5 + 0.5 * window * crests, colour, background), along, beyond=None)
