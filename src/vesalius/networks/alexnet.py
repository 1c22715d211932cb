"""AlexNet (Krizhevsky, Sutskever & Hinton 2012): two towers, local response norms, 227 × 227 pixels.

The towers are groups: channels 0-47 of conv1 are the first tower's. `OneTower` is the later one without norms
(Krizhevsky 2014, arXiv 1404.5997), which torchvision calls AlexNet; its units are others.
"""

from jaxtyping import Float
from torch import Tensor, nn

from vesalius.networks.convolution import Maps

DENSE = ("fc6_pre_relu", "fc6", "fc7_pre_relu", "fc7", "fc8")


class AlexNet(nn.ModuleDict):
    """The two towers of 2012, as Caffe computes them: 96, 256, 384, 384 and 256 channels."""

    def __init__(self, *, classes: int = 1000) -> None:
        super().__init__()
        rectified(self, "conv1", nn.Conv2d(3, 96, 11, 4))
        self["norm1"], self["pool1"] = nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2)
        rectified(self, "conv2", nn.Conv2d(96, 256, 5, padding=2, groups=2))
        self["norm2"], self["pool2"] = nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2)
        rectified(self, "conv3", nn.Conv2d(256, 384, 3, padding=1))
        rectified(self, "conv4", nn.Conv2d(384, 384, 3, padding=1, groups=2))
        rectified(self, "conv5", nn.Conv2d(384, 256, 3, padding=1, groups=2))
        self["pool5"] = nn.MaxPool2d(3, 2)
        rectified(self, "fc6", nn.Linear(256 * 6 * 6, 4096))
        rectified(self, "fc7", nn.Linear(4096, 4096))
        self["fc8"] = nn.Linear(4096, classes)

    def forward(self, pixels: Maps) -> Float[Tensor, "batch class"]:
        x = pixels
        for name in (name for name in self if name not in DENSE):
            x = self[name](x)
        x = x.flatten(1)
        for name in DENSE:
            x = self[name](x)
        return x


class OneTower(nn.ModuleDict):
    """The single tower of 2014: 64, 192, 384, 256 and 256 channels, 224 × 224 pixels."""

    def __init__(self, *, classes: int = 1000) -> None:
        super().__init__()
        rectified(self, "conv1", nn.Conv2d(3, 64, 11, 4, padding=2))
        self["pool1"] = nn.MaxPool2d(3, 2)
        rectified(self, "conv2", nn.Conv2d(64, 192, 5, padding=2))
        self["pool2"] = nn.MaxPool2d(3, 2)
        rectified(self, "conv3", nn.Conv2d(192, 384, 3, padding=1))
        rectified(self, "conv4", nn.Conv2d(384, 256, 3, padding=1))
        rectified(self, "conv5", nn.Conv2d(256, 256, 3, padding=1))
        self["pool5"] = nn.MaxPool2d(3, 2)
        rectified(self, "fc6", nn.Linear(256 * 6 * 6, 4096))
        rectified(self, "fc7", nn.Linear(4096, 4096))
        self["fc8"] = nn.Linear(4096, classes)

    forward = AlexNet.forward


def rectified(network: nn.ModuleDict, name: str, layer: nn.Module) -> None:
    """Add a layer under `NAME_pre_relu` and its rectifier under `NAME`."""
    network[f"{name}_pre_relu"], network[name] = layer, nn.ReLU()
