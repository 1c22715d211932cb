"""VGG-16 and VGG-19 (Simonyan & Zisserman 2014, arXiv 1409.1556): 3×3 convolutions, rectified, no norms.

Maps are named as in the paper, `conv3_3`; before the rectifier they are `conv3_3_pre_relu`. `HED` is the same
trunk with heads that draw edges.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vesalius.networks.convolution import Maps

VGG16 = (2, 2, 3, 3, 3)
VGG19 = (2, 2, 4, 4, 4)
WIDTHS = (64, 128, 256, 512, 512)


class Trunk(nn.ModuleDict):
    """Five blocks of convolutions, with a maximum over 2×2 between them."""

    def __init__(self, convolutions: tuple[int, ...]) -> None:
        super().__init__()
        inputs = 3
        for block, (number, width) in enumerate(zip(convolutions, WIDTHS), 1):
            for name in (f"conv{block}_{conv}" for conv in range(1, number + 1)):
                self[f"{name}_pre_relu"] = nn.Conv2d(inputs, width, 3, padding=1)
                self[name] = nn.ReLU()
                inputs = width
            if block < len(WIDTHS):
                self[f"pool{block}"] = nn.MaxPool2d(2, ceil_mode=True)
        self.layers = tuple(name for name in self if name.startswith("conv") and f"{name}_pre_relu" in self)

    def block(self, number: int, x: Maps) -> Maps:
        """The last map of a block."""
        for name in (name for name in self.layers if name.startswith(f"conv{number}")):
            x = self[name](self[f"{name}_pre_relu"](x))
        return x


class VGG(Trunk):
    """The classifier: the trunk and three dense layers, which read 224 × 224 pixels."""

    def __init__(self, *, convolutions: tuple[int, ...] = VGG16, classes: int = 1000) -> None:
        super().__init__(convolutions)
        self["pool5"] = nn.MaxPool2d(2)
        self["fc6_pre_relu"], self["fc6"] = nn.Linear(WIDTHS[-1] * 7 * 7, 4096), nn.ReLU()
        self["fc7_pre_relu"], self["fc7"] = nn.Linear(4096, 4096), nn.ReLU()
        self["fc8"] = nn.Linear(4096, classes)

    def forward(self, pixels: Maps) -> Float[Tensor, "batch class"]:
        x = pixels
        for number in range(1, 6):
            x = self[f"pool{number}"](self.block(number, x))
        x = self["fc6"](self["fc6_pre_relu"](x.flatten(1)))
        x = self["fc7"](self["fc7_pre_relu"](x))
        return self["fc8"](x)


class HED(Trunk):
    """Edges (Xie & Tu 2015, arXiv 1504.06375): the probability of one at every pixel of a picture of any size.

    The last map of each block gives a map of edges, `side1` to `side5`, enlarged to the picture; `fuse` weighs
    the five.
    """

    def __init__(self) -> None:
        super().__init__(VGG16)
        for number, width in enumerate(WIDTHS, 1):
            self[f"side{number}"] = nn.Conv2d(width, 1, 1)
        self["fuse"] = nn.Conv2d(len(WIDTHS), 1, 1)

    def forward(self, pixels: Maps) -> Float[Tensor, "batch 1 row column"]:
        x, sides = pixels, []
        for number in range(1, 6):
            x = self.block(number, x if number == 1 else self[f"pool{number - 1}"](x))
            side = self[f"side{number}"](x)
            sides.append(nn.functional.interpolate(side, size=pixels.shape[2:], mode="bilinear"))
        return self["fuse"](torch.cat(sides, 1)).sigmoid()
