"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381): inverted residuals with linear bottlenecks.

A block widens its input (`expand`), filters each channel by itself (`depthwise`), and comes back to few channels
(`project`), which are not rectified and are added to the input where the sizes agree. `block6.expand` and
`block6.depthwise` are rectified maps, the block's own output is the stream.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from vesalius.networks.convolution import Maps, SameConv2d


class Stage(NamedTuple):
    """Blocks of one kind; the first of them has the stride."""

    expansion: int
    width: int
    blocks: int
    stride: int
    kernel: int = 3


MOBILENET_V2 = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
    """The network with 1280 features before its classifier; `head` is the classifier's hidden layers, if any."""

    def __init__(
        self, *, stages: Iterable[Stage] = MOBILENET_V2, classes: int = 1000, hidden: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        self.stem_conv, self.stem_pre_relu, self.stem = rectified(3, 32, kernel=3, stride=2)
        width, self.depth = 32, 0
        for stage in stages:
            for index in range(stage.blocks):
                block = InvertedResidual(
                    width,
                    stage.width,
                    expansion=stage.expansion,
                    stride=stage.stride if index == 0 else 1,
                    kernel=stage.kernel,
                )
                self.add_module(f"block{self.depth}", block)
                width, self.depth = stage.width, self.depth + 1
        self.head_conv, self.head_pre_relu, self.head = rectified(width, 1280, kernel=1)
        self.hidden = dense(1280, hidden)
        self.classifier = nn.Linear((1280, *hidden)[-1], classes)

    def forward(self, pixels: Maps) -> Float[Tensor, "batch class"]:
        x = self.stem(self.stem_pre_relu(self.stem_conv(pixels)))
        for index in range(self.depth):
            x = self.get_submodule(f"block{index}")(x)
        x = self.head(self.head_pre_relu(self.head_conv(x)))
        return self.classifier(self.hidden(x.mean((2, 3))))


class InvertedResidual(nn.Module):
    """One block; without expansion it begins with the depthwise filters."""

    def __init__(self, inputs: int, outputs: int, *, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.widens, self.adds = expansion > 1, stride == 1 and inputs == outputs
        if self.widens:
            self.expand_conv, self.expand_pre_relu, self.expand = rectified(inputs, inner, kernel=1)
        self.depthwise_conv, self.depthwise_pre_relu, self.depthwise = rectified(
            inner, inner, kernel=kernel, stride=stride, groups=inner
        )
        self.project_conv = SameConv2d(inner, outputs, 1, bias=False)
        self.project = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Maps) -> Maps:
        inner = self.expand(self.expand_pre_relu(self.expand_conv(x))) if self.widens else x
        inner = self.depthwise(self.depthwise_pre_relu(self.depthwise_conv(inner)))
        projected = self.project(self.project_conv(inner))
        return x + projected if self.adds else projected


def rectified(
    inputs: int, outputs: int, *, kernel: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Module, nn.Module, nn.Module]:
    """A convolution, its batch norm, and the rectifier that stops at 6."""
    conv = SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(outputs, eps=1e-3), nn.ReLU6()


def dense(inputs: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Rectified dense layers of a classifier, `dense1` and so on; none leave their input alone."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (before, after) in enumerate(zip((inputs, *widths), widths), 1):
        layers[f"dense{number}_pre_relu"] = nn.Linear(before, after)
        layers[f"dense{number}"] = nn.ReLU()
    return nn.Sequential(layers)
