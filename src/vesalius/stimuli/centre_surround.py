"""Centre–surround: a disc on a background, the oldest stimulus of all (Kuffler 1953)."""

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius.stimuli.canvas import GREY, Colour, beside, blend, coverage, faded, frame, hue
from vesalius.stimuli.family import Axis, family


@family(
    Axis(
        "radius",
        "px",
        lambda field: field / 2 * torch.tensor([0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.5]),
    ),
    Axis("contrast", "", lambda _: torch.tensor([-1.0, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1.0])),
    variants={"grey": {}, "red–cyan": {"hue_angle": 0.0}, "yellow–blue": {"hue_angle": 60.0}},
)
def centre_surround(
    radius: Float[Tensor, " picture"],
    contrast: Float[Tensor, " picture"],
    *,
    size: int,
    centre: tuple[float, float] | None = None,
    hue_angle: float | None = None,
    surround: Colour = GREY,
) -> Float[Tensor, "picture 3 size size"]:
    """A disc of this radius (px) that is brighter (contrast > 0) or darker than grey, on `surround`.

    With `hue_angle` (degrees; see `colour_contrast`) the disc has that hue, or the opposite one where contrast < 0.

    >>> centre_surround(torch.tensor([1.0]), torch.tensor([1.0]), size=3)[0, 0]
    tensor([[0.5429, 0.7500, 0.5429],
            [0.7500, 1.0000, 0.7500],
            [0.5429, 0.7500, 0.5429]])
    """
    along, across = frame(torch.zeros_like(radius), size=size, centre=centre)
    inside = coverage(torch.hypot(along, across) - beside(radius))
    tint = torch.ones(3) if hue_angle is None else hue(torch.tensor([hue_angle]))[0] * 2 - 1
    disc = 0.5 + 0.5 * contrast.to(torch.float64)[:, None] * tint
    return faded(blend(inside, disc, surround), along, beyond=None)
