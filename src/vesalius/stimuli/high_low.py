"""High beside low frequencies: what high–low frequency detectors respond to.

Schubert et al. 2021 (High-Low Frequency Detectors, distill.pub/2020/circuits/frequency-edges): one half of the
picture is a texture of short waves, the other the same texture of long ones.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius.stimuli.canvas import BLACK, BLUE, WHITE, YELLOW, Colour, blend, coverage, faded, frame, wave
from vesalius.stimuli.family import Axis, family


@family(
    Axis("orientation", "°", lambda _: torch.arange(0.0, 360.0, 15.0), period=360.0),
    Axis("ratio", "", lambda _: torch.tensor([1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0])),
    variants={"grey": {}, "inverted": {"phase": 180.0}, "colour": {"colour": YELLOW, "background": BLUE}},
)
def high_low(
    orientation: Float[Tensor, " picture"],
    ratio: Float[Tensor, " picture"],
    *,
    size: int,
    centre: tuple[float, float] | None = None,
    wavelength: float = 24.0,
    phase: float = 0.0,
    colour: Colour = WHITE,
    background: Colour = BLACK,
) -> Float[Tensor, "picture 3 size size"]:
    """Waves of `wavelength` px, and of wavelength / ratio on the side towards the orientation; ratio 1 has no boundary.

    The texture is a product of two waves, one along the orientation and one across it, so that neither side has a
    direction of its own beyond the boundary's.
    """
    along, across = frame(orientation, size=size, centre=centre)
    low, short = torch.full_like(ratio, wavelength), wavelength / ratio
    side = coverage(-along)
    texture = side * _woven(along, across, short, orientation, phase)
    texture = texture + (1 - side) * _woven(along, across, low, orientation, phase)
    return faded(blend(0.5 + 0.5 * texture, colour, background), along, beyond=None)


def _woven(along: Tensor, across: Tensor, wavelength: Tensor, orientation: Tensor, phase: float) -> Tensor:
    """cos(along) · cos(across) as half the sum of two diagonal waves, so that each is averaged over pixels exactly."""
    diagonal = wavelength / 2**0.5
    rising = wave((along + across) / 2**0.5, wavelength=diagonal, direction=orientation + 45, phase=phase)
    falling = wave((along - across) / 2**0.5, wavelength=diagonal, direction=orientation - 45, phase=phase)
    return (rising + falling) / 2
