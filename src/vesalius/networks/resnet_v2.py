"""ResNetV2-50 (He et al. 2016, arXiv 1603.05027): residual units that are normalised and rectified first.

The version of TensorFlow's slim and Keras, on pixels in [-1, 1]: a block strides in its last unit, and its first
unit's shortcut reads the rectified input. Names are slim's: `block2.unit1.conv2` is the map behind the norm and
the rectifier that follow the second convolution, `block2.unit1.preact` the rectified input of a unit, and the
output of `block2.unit1` the stream, which is not rectified.
"""

from jaxtyping import Float
from torch import Tensor, nn

from vesalius.networks.convolution import Maps

UNITS = (3, 4, 6, 3)
WIDTHS = (64, 128, 256, 512)
EPSILON = 1.001e-5


class ResNetV2(nn.Module):
    """Fifty layers by default; the output is the logits of the classes."""

    def __init__(self, *, units: tuple[int, ...] = UNITS, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3)
        self.pool1 = nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(3, 2))  # what is pooled can be negative
        self.units = units
        channels = 64
        for number, (count, width) in enumerate(zip(units, WIDTHS), 1):
            block = nn.ModuleDict()
            for index in range(1, count + 1):
                stride = 2 if index == count and number < len(units) else 1
                block[f"unit{index}"] = Unit(channels, width, stride=stride, projects=index == 1)
                channels = 4 * width
            self.add_module(f"block{number}", block)
        self.postnorm_pre_relu, self.postnorm = nn.BatchNorm2d(channels, eps=EPSILON), nn.ReLU()
        self.logits = nn.Linear(channels, classes)

    def forward(self, pixels: Maps) -> Float[Tensor, "batch class"]:
        x = self.pool1(self.conv1(pixels))
        for number, count in enumerate(self.units, 1):
            for index in range(1, count + 1):
                x = self.get_submodule(f"block{number}.unit{index}")(x)
        return self.logits(self.postnorm(self.postnorm_pre_relu(x)).mean((2, 3)))


class Unit(nn.Module):
    """A bottleneck of three convolutions, added to its input or to a shortcut of it."""

    def __init__(self, inputs: int, width: int, *, stride: int, projects: bool) -> None:
        super().__init__()
        self.preact_pre_relu, self.preact = nn.BatchNorm2d(inputs, eps=EPSILON), nn.ReLU()
        shortcut = nn.Conv2d(inputs, 4 * width, 1, stride) if projects else nn.MaxPool2d(1, stride)
        self.projects, self.shortcut = projects, shortcut
        self.conv1_conv = nn.Conv2d(inputs, width, 1, bias=False)
        self.conv1_pre_relu, self.conv1 = nn.BatchNorm2d(width, eps=EPSILON), nn.ReLU()
        self.conv2_conv = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.conv2_pre_relu, self.conv2 = nn.BatchNorm2d(width, eps=EPSILON), nn.ReLU()
        self.conv3 = nn.Conv2d(width, 4 * width, 1)

    def forward(self, x: Maps) -> Maps:
        rectified = self.preact(self.preact_pre_relu(x))
        inner = self.conv1(self.conv1_pre_relu(self.conv1_conv(rectified)))
        inner = self.conv2(self.conv2_pre_relu(self.conv2_conv(inner)))
        return self.shortcut(rectified if self.projects else x) + self.conv3(inner)
