"""Thin ResNet-50 (He et al. 2015, arXiv 1512.03385, with half the channels): the network of Yahoo's open_nsfw.

Its published weights have the batch norms multiplied into the convolutions. `stage2.unit3.sum` is the rectified sum
at the end of a unit; `conv1` and `conv2` are the rectified maps inside.
"""

from jaxtyping import Float
from torch import Tensor, nn

from vesalius.networks.convolution import Maps, SameMaxPool2d

UNITS = (3, 4, 6, 3)
WIDTHS = (32, 64, 128, 256)


class ThinResNet(nn.Module):
    """The network with two classes: safe and not."""

    def __init__(self, *, classes: int = 2) -> None:
        super().__init__()
        self.conv1_pre_relu, self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3), nn.ReLU()
        self.pool1 = SameMaxPool2d(3, 2)
        channels = 64
        for number, (count, width) in enumerate(zip(UNITS, WIDTHS), 1):
            stage = nn.ModuleDict()
            for index in range(1, count + 1):
                stride = 2 if index == 1 and number > 1 else 1
                stage[f"unit{index}"] = Unit(channels, width, stride=stride, projects=index == 1)
                channels = 4 * width
            self.add_module(f"stage{number}", stage)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, pixels: Maps) -> Float[Tensor, "batch class"]:
        x = self.pool1(self.conv1(self.conv1_pre_relu(pixels)))
        for number, count in enumerate(UNITS, 1):
            for index in range(1, count + 1):
                x = self.get_submodule(f"stage{number}.unit{index}")(x)
        return self.classifier(x.mean((2, 3)))


class Unit(nn.Module):
    """A bottleneck, striding in its first convolution, added to its input and rectified."""

    def __init__(self, inputs: int, width: int, *, stride: int, projects: bool) -> None:
        super().__init__()
        self.conv1_pre_relu, self.conv1 = nn.Conv2d(inputs, width, 1, stride), nn.ReLU()
        self.conv2_pre_relu, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.ReLU()
        self.shortcut = nn.Conv2d(inputs, 4 * width, 1, stride) if projects else nn.Identity()
        self.conv3 = nn.Conv2d(width, 4 * width, 1)
        self.sum_pre_relu, self.sum = Sum(), nn.ReLU()

    def forward(self, x: Maps) -> Maps:
        inner = self.conv1(self.conv1_pre_relu(x))
        inner = self.conv2(self.conv2_pre_relu(inner))
        return self.sum(self.sum_pre_relu(self.shortcut(x), self.conv3(inner)))


class Sum(nn.Module):
    """A unit's input and what it adds."""

    def forward(self, stream: Maps, added: Maps) -> Maps:
        return stream + added
