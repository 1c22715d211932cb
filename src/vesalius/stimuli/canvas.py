"""What all families draw with: coordinates, coverage of a pixel, waves averaged over a pixel, and colours."""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vesalius.errors import VesaliusError

Colour = tuple[float, float, float]
"""Red, green and blue in 0..1."""

WHITE, GREY, BLACK = (1.0, 1.0, 1.0), (0.5, 0.5, 0.5), (0.0, 0.0, 0.0)
RED, GREEN, BLUE, YELLOW = (0.9, 0.1, 0.1), (0.1, 0.6, 0.1), (0.1, 0.1, 0.8), (0.9, 0.8, 0.1)


def frame(
    orientation: Float[Tensor, " picture"], *, size: int, centre: tuple[float, float] | None = None
) -> tuple[Float[Tensor, "picture size size"], Float[Tensor, "picture size size"]]:
    """Coordinates of the pixels' centres in px: along the orientation, and 90° counter-clockwise from it.

    `centre` is the origin as (row, column), by default the exact middle. Raises VesaliusError for an empty picture.
    """
    if size < 1:
        raise VesaliusError(f"a picture of size {size} has no pixels; expected 1 or more")
    row, column = centre or ((size - 1) / 2, (size - 1) / 2)
    along = torch.arange(size, dtype=torch.float64)
    right, up = (along - column)[None, None, :], (row - along)[None, :, None]
    turn = orientation.to(torch.float64).deg2rad()[:, None, None]
    return right * turn.cos() + up * turn.sin(), up * turn.cos() - right * turn.sin()


def beside(values: Float[Tensor, " picture"]) -> Float[Tensor, "picture 1 1"]:
    """One value per picture, to meet its pixels."""
    return values.to(torch.float64)[:, None, None]


def coverage(distance: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """How much of a pixel lies inside a contour at this signed distance (px, negative inside): 0..1.

    >>> coverage(torch.tensor([-1.0, 0.0, 0.25, 2.0]))
    tensor([1.0000, 0.5000, 0.2500, 0.0000])
    """
    return (0.5 - distance).clamp(0, 1)


def wave(
    along: Float[Tensor, "picture size size"],
    *,
    wavelength: Float[Tensor, " picture"],
    direction: Float[Tensor, " picture"],
    phase: float = 0.0,
) -> Float[Tensor, "picture size size"]:
    """cos(2π along / wavelength + phase) averaged exactly over each pixel; -1..1.

    `along` is the coordinate the wave runs in, `direction` its direction in degrees, `phase` is in degrees. The mean of
    a plane wave over a square pixel is its value in the middle times sinc of each of its two frequencies.
    """
    frequency, turn = 1 / wavelength.to(torch.float64), direction.to(torch.float64).deg2rad()
    kept = torch.sinc(frequency * turn.cos()) * torch.sinc(frequency * turn.sin())
    return beside(kept) * torch.cos(2 * math.pi * along * beside(frequency) + math.radians(phase))


def blend(
    inside: Float[Tensor, "picture size size"], colour: Colour | Tensor, background: Colour | Tensor
) -> Float[Tensor, "picture 3 size size"]:
    """A share `inside` in 0..1 of one colour over another; a colour may differ by picture `[picture, 3]`."""
    inside = inside[:, None]
    return inside * _painted(colour) + (1 - inside) * _painted(background)


def faded(
    pictures: Float[Tensor, "picture 3 size size"],
    distance: Float[Tensor, "picture size size"],
    *,
    beyond: float | None,
    over: float = 10.0,
    colour: Colour = GREY,
) -> Float[Tensor, "picture 3 size size"]:
    """Let pictures dissolve into a colour from `beyond` px of `distance`, over `over` px; None leaves them whole."""
    pictures = pictures.to(torch.float64)
    if beyond is not None:
        kept = (1 - (distance - beyond) / max(over, 1e-9)).clamp(0, 1)[:, None]
        pictures = kept * pictures + (1 - kept) * _painted(colour)
    return pictures.float()


def hue(degrees: Float[Tensor, " picture"], *, contrast: float = 0.5) -> Float[Tensor, "picture 3"]:
    """Colours of one mean brightness (that of grey): 0° is red, 120° green, 240° blue; the opposite is at + 180°."""
    thirds = torch.tensor([0.0, 120.0, 240.0], dtype=torch.float64)
    return 0.5 + contrast * (degrees.to(torch.float64)[:, None] - thirds).deg2rad().cos()


def _painted(colour: Colour | Tensor) -> Float[Tensor, "picture 3 1 1"]:
    values = torch.as_tensor(colour, dtype=torch.float64)
    return rearrange(values if values.dim() == 2 else values[None], "picture channel -> picture channel 1 1")
