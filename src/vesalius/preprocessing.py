"""From a picture to a network's input: size, order of the colours, mean and scale. It is part of the model."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from vesalius.errors import VesaliusError


@dataclass(frozen=True)
class Preprocessing:
    """Pixels in 0..1 to what the bare module was trained on: `(pixel - mean) / sd`, colours in `order`.

    >>> inception = Preprocessing(size=(224, 224), mean=(117 / 255,) * 3, sd=(1 / 255,) * 3)
    >>> inception.normalise(torch.ones(1, 3, 2, 2))[0, 0, 0, 0].round().item()
    138.0
    """

    size: tuple[int, int]
    """Height and width of the input the network was trained on; conv networks read others too."""
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    sd: tuple[float, ...] = (1.0, 1.0, 1.0)
    order: str = "RGB"
    """`RGB` or `BGR`: in what order the module expects the colours; pixels are always RGB, mean and sd in `order`."""
    crop: float = 1.0
    """Share of the shorter side that the central crop keeps."""
    fixed: bool = False
    """Whether the network reads no size but this one (a dense layer or learnt positions)."""

    def __post_init__(self) -> None:
        if self.order not in ("RGB", "BGR") or len(self.mean) != len(self.sd) or min(self.sd) <= 0:
            raise VesaliusError(
                f"preprocessing has mean {self.mean}, sd {self.sd} and order '{self.order}'; "
                "expected one positive sd for each mean, and RGB or BGR"
            )

    @property
    def channels(self) -> int:
        return len(self.mean)

    def normalise(self, pixels: Tensor) -> Float[Tensor, "batch channel height width"]:
        """The module's input of pixels in 0..1; differentiable, for any height and width.

        Raises VesaliusError for another number of channels, or another size where the network reads only one.
        """
        if pixels.dim() != 4 or pixels.shape[1] != self.channels or not pixels.is_floating_point():
            raise VesaliusError(
                f"pixels of shape {tuple(pixels.shape)} ({pixels.dtype}) were given; "
                f"expected [batch, {self.channels}, height, width] in 0..1"
            )
        if self.fixed and tuple(pixels.shape[2:]) != self.size:
            raise VesaliusError(
                f"pictures of {pixels.shape[2]}×{pixels.shape[3]} pixels were given; "
                f"this network reads {self.size[0]}×{self.size[1]} only"
            )
        if self.order == "BGR":
            pixels = pixels.flip(1)
        mean, sd = (torch.tensor(values).to(pixels)[:, None, None] for values in (self.mean, self.sd))
        return (pixels - mean) / sd

    def fit(
        self, picture: Float[Tensor, "channel height width"], size: tuple[int, int] | None = None
    ) -> Float[Tensor, "colour row column"]:
        """A picture of any size, resized (antialiased) and cropped about its centre to `size`.

        A grey picture is repeated over the colours of a coloured network; a coloured one is averaged for a grey one.
        Raises VesaliusError where the number of channels cannot be made to fit.
        """
        height, width = size or self.size
        channels = picture.shape[0]
        if channels == 1:
            picture = picture.expand(self.channels, -1, -1)
        elif self.channels == 1 and channels == 3:
            picture = (picture * picture.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(
                0, keepdim=True
            )
        elif channels != self.channels:
            raise VesaliusError(
                f"the picture has {channels} channels; expected {self.channels}, or 1 for a grey one"
            )
        scale = max(height / picture.shape[1], width / picture.shape[2]) / self.crop
        resized = [max(side, round(old * scale)) for side, old in zip((height, width), picture.shape[1:])]
        if resized != list(picture.shape[1:]):
            picture = interpolate(picture[None], size=resized, mode="bilinear", antialias=True)[0]
        top, left = (resized[0] - height) // 2, (resized[1] - width) // 2
        return picture[:, top : top + height, left : left + width].clamp(0, 1)
