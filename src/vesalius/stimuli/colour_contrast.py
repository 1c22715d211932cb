"""Colour contrast: one hue on one side, the opposite hue on the other, of one brightness.

Olah et al. 2020 (An Overview of Early Vision in InceptionV1, distill.pub/2020/circuits/early-vision) name the units
that respond to it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius.stimuli.canvas import blend, coverage, faded, frame, hue
from vesalius.stimuli.family import Axis, family


@family(
    Axis("orientation", "°", lambda _: torch.arange(0.0, 360.0, 15.0), period=360.0),
    Axis("hue", "°", lambda _: torch.arange(0.0, 360.0, 30.0), period=360.0),
    variants={"full": {}, "half": {"contrast": 0.25}},
)
def colour_contrast(
    orientation: Float[Tensor, " picture"],
    hue_angle: Float[Tensor, " picture"],
    *,
    size: int,
    centre: tuple[float, float] | None = None,
    contrast: float = 0.5,
) -> Float[Tensor, "picture 3 size size"]:
    """An edge with a hue on the side of its orientation and the opposite hue behind; 0° red, 120° green, 240° blue.

    The mean of red, green and blue is 0.5 everywhere; `contrast` in 0..0.5 is how far each goes from it.
    """
    along, _ = frame(orientation, size=size, centre=centre)
    front, back = hue(hue_angle, contrast=contrast), hue(hue_angle + 180, contrast=contrast)
    return faded(blend(coverage(-along), front, back), along, beyond=None)
