"""InceptionV3 (Szegedy et al. 2015, arXiv 1512.00567), the version of Keras.

Mixed layers are `mixed0` to `mixed10`, and convolutions have Keras's numbers: `conv2d_9` is the map behind the
norm and the rectifier. Branches are joined before the rectifier, as in `inception_v1`; a maximum that is one of
them is positive already.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from vesalius.networks.convolution import Concatenation, Maps, SameAvgPool2d, SameConv2d
from vesalius.networks.mobilenet_v2 import dense

Conv = tuple[int, tuple[int, int]]
"""Channels, and the rows and columns of the kernel."""

ONE, THREE, FIVE, ROW, COLUMN = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1)


class Branch(NamedTuple):
    """What happens to the input one after the other, and the convolutions whose outputs are kept."""

    kept: tuple[Conv, ...]
    steps: tuple[Conv, ...] = ()
    pool: Literal["", "average", "maximum"] = ""


def square(pooled: int) -> tuple[Branch, ...]:
    return (
        Branch(((64, ONE),)),
        Branch(((64, FIVE),), ((48, ONE),)),
        Branch(((96, THREE),), ((64, ONE), (96, THREE))),
        Branch(((pooled, ONE),), pool="average"),
    )


def crossed(width: int) -> tuple[Branch, ...]:
    return (
        Branch(((192, ONE),)),
        Branch(((192, COLUMN),), ((width, ONE), (width, ROW))),
        Branch(((192, ROW),), ((width, ONE), (width, COLUMN), (width, ROW), (width, COLUMN))),
        Branch(((192, ONE),), pool="average"),
    )


SPLIT: tuple[Conv, ...] = ((384, (1, 3)), (384, (3, 1)))
WIDE = (
    Branch(((320, ONE),)),
    Branch(SPLIT, ((384, ONE),)),
    Branch(SPLIT, ((448, ONE), (384, THREE))),
    Branch(((192, ONE),), pool="average"),
)
STEM: tuple[Conv, ...] = ((32, THREE), (32, THREE), (64, THREE), (80, ONE), (192, THREE))
MIXED: dict[str, tuple[Branch, ...]] = {
    "mixed0": square(32),
    "mixed1": square(64),
    "mixed2": square(64),
    "mixed3": (
        Branch(((384, THREE),)),
        Branch(((96, THREE),), ((64, ONE), (96, THREE))),
        Branch((), pool="maximum"),
    ),
    "mixed4": crossed(128),
    "mixed5": crossed(160),
    "mixed6": crossed(160),
    "mixed7": crossed(192),
    "mixed8": (
        Branch(((320, THREE),), ((192, ONE),)),
        Branch(((192, THREE),), ((192, ONE), (192, ROW), (192, COLUMN))),
        Branch((), pool="maximum"),
    ),
    "mixed9": WIDE,
    "mixed10": WIDE,
}
HALVING = ("mixed3", "mixed8")
LAYERS = (*(f"conv2d_{number}" for number in range(1, 6)), *MIXED)


class InceptionV3(nn.ModuleDict):
    """The network with one dense layer, or with `hidden` rectified ones before it, as classifier."""

    def __init__(self, *, classes: int = 1000, hidden: tuple[int, ...] = ()) -> None:
        super().__init__()
        numbers = iter(range(1, 95))
        channels = 3
        for index, (width, kernel) in enumerate(STEM):
            name = f"conv2d_{next(numbers)}"
            self._add(name, channels, width, kernel, stride=2 if index == 0 else 1, same=index == 2)
            self[name] = nn.ReLU()
            channels = width
        self["max_pooling2d_1"], self["max_pooling2d_2"] = nn.MaxPool2d(3, 2), nn.MaxPool2d(3, 2)
        self.convs: dict[str, list[list[str]]] = {}
        for name, branches in MIXED.items():
            channels = self._add_mixed(name, branches, channels, numbers)
        self["avg_pool"] = nn.AdaptiveAvgPool2d(1)
        self["hidden"] = dense(channels, hidden)
        self["predictions"] = nn.Linear((channels, *hidden)[-1], classes)

    def forward(self, pixels: Maps) -> Float[Tensor, "batch class"]:
        x = pixels
        for number in range(1, 6):
            x = self[f"conv2d_{number}"](self._normed(f"conv2d_{number}", x))
            if number in (3, 5):
                x = self[f"max_pooling2d_{number // 2}"](x)
        for name, branches in MIXED.items():
            paths = zip(branches, self.convs[name])
            joined = [out for branch, convs in paths for out in self._branch(name, branch, convs, x)]
            x = self[name](self[f"{name}_pre_relu"](*joined))
        return self["predictions"](self["hidden"](self["avg_pool"](x).flatten(1)))

    def _branch(self, name: str, branch: Branch, convs: list[str], x: Maps) -> list[Maps]:
        if branch.pool:
            x = self[f"{name}_pool"](x)
        for conv in convs[: len(branch.steps)]:
            x = self[conv](self._normed(conv, x))
        return [self._normed(conv, x) for conv in convs[len(branch.steps) :]] or [x]

    def _normed(self, name: str, x: Maps) -> Maps:
        return self[f"{name}_pre_relu"](self[f"{name}_conv"](x))

    def _add_mixed(self, name: str, branches: tuple[Branch, ...], inputs: int, numbers: Iterator[int]) -> int:
        """Build one mixed layer; its number of channels."""
        self.convs[name], parts, total = [], [], 0
        halves = name in HALVING
        for branch in branches:
            convs, width = [], inputs
            if branch.pool:
                self[f"{name}_pool"] = nn.MaxPool2d(3, 2) if branch.pool == "maximum" else SameAvgPool2d(3)
            for channels, kernel in branch.steps:
                convs.append(f"conv2d_{next(numbers)}")
                self._add(convs[-1], width, channels, kernel)
                self[convs[-1]] = nn.ReLU()
                width = channels
            for channels, kernel in branch.kept:
                convs.append(f"conv2d_{next(numbers)}")
                self._add(convs[-1], width, channels, kernel, stride=2 if halves else 1, same=not halves)
                parts.append(f"{convs[-1]}_pre_relu")
                total += channels
            if not branch.kept:
                parts.append(f"{name}_pool")
                total += inputs
            self.convs[name].append(convs)
        self[f"{name}_pre_relu"], self[name] = Concatenation(tuple(parts)), nn.ReLU()
        return total

    def _add(
        self,
        name: str,
        inputs: int,
        width: int,
        kernel: tuple[int, int],
        *,
        stride: int = 1,
        same: bool = True,
    ) -> None:
        kind = SameConv2d if same else nn.Conv2d
        self[f"{name}_conv"] = kind(inputs, width, kernel, stride, bias=False)
        self[f"{name}_pre_relu"] = nn.BatchNorm2d(width, eps=1e-3)
