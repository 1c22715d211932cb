"""InceptionV1 (Szegedy et al. 2014, arXiv 1409.4842): Google's "inception5h", the network of the circuits thread.

Names are those of its TensorFlow graph. The branches of a mixed layer are joined before the rectifier, which
gives the same numbers and an address to the values before it: `mixed3b_pre_relu`, `mixed3b`. 4a has 508
channels and the 5×5 branches are 5×5: torchvision's GoogLeNet is another network, with other units.
"""

from jaxtyping import Float
from torch import Tensor, nn

from vesalius.networks.convolution import (
    Concatenation,
    LocalResponseNorm,
    Maps,
    SameConv2d,
    SameMaxPool2d,
)

MIXED = {  # 1×1, 3×3 bottleneck, 3×3, 5×5 bottleneck, 5×5, pool reduce
    "mixed3a": (64, 96, 128, 16, 32, 32),
    "mixed3b": (128, 128, 192, 32, 96, 64),
    "mixed4a": (192, 96, 204, 16, 48, 64),
    "mixed4b": (160, 112, 224, 24, 64, 64),
    "mixed4c": (128, 128, 256, 24, 64, 64),
    "mixed4d": (112, 144, 288, 32, 64, 64),
    "mixed4e": (256, 160, 320, 32, 128, 128),
    "mixed5a": (256, 160, 320, 48, 128, 128),
    "mixed5b": (384, 192, 384, 48, 128, 128),
}
BRANCHES = ("1x1", "3x3", "5x5", "pool_reduce")
POOLED_AFTER = {"mixed3b": "maxpool4", "mixed4e": "maxpool10"}
NORM = {"depth_radius": 5, "bias": 1.0, "alpha": 1e-4, "beta": 0.5}
LAYERS = ("conv2d0", "conv2d1", "conv2d2", *MIXED)


class InceptionV1(nn.ModuleDict):
    """The trunk and the last of the three classifiers, with the 1008 outputs of the published graph."""

    def __init__(self, *, classes: int = 1008) -> None:
        super().__init__()
        self._rectified("conv2d0", SameConv2d(3, 64, 7, 2))
        self["maxpool0"] = SameMaxPool2d(3, 2)
        self["localresponsenorm0"] = LocalResponseNorm(**NORM)
        self._rectified("conv2d1", SameConv2d(64, 64, 1))
        self._rectified("conv2d2", SameConv2d(64, 192, 3))
        self["localresponsenorm1"] = LocalResponseNorm(**NORM)
        self["maxpool1"] = SameMaxPool2d(3, 2)
        channels = 192
        for name, (one, bottleneck3, three, bottleneck5, five, reduce) in MIXED.items():
            self[f"{name}_1x1_pre_relu"] = SameConv2d(channels, one, 1)
            self._rectified(f"{name}_3x3_bottleneck", SameConv2d(channels, bottleneck3, 1))
            self[f"{name}_3x3_pre_relu"] = SameConv2d(bottleneck3, three, 3)
            self._rectified(f"{name}_5x5_bottleneck", SameConv2d(channels, bottleneck5, 1))
            self[f"{name}_5x5_pre_relu"] = SameConv2d(bottleneck5, five, 5)
            self[f"{name}_pool"] = SameMaxPool2d(3, 1)
            self[f"{name}_pool_reduce_pre_relu"] = SameConv2d(channels, reduce, 1)
            self._rectified(name, Concatenation(tuple(f"{name}_{branch}_pre_relu" for branch in BRANCHES)))
            channels = one + three + five + reduce
            if name in POOLED_AFTER:
                self[POOLED_AFTER[name]] = SameMaxPool2d(3, 2)
        self["avgpool0"] = nn.AdaptiveAvgPool2d(1)
        self["softmax2_pre_activation"] = nn.Linear(channels, classes)

    def forward(self, pixels: Maps) -> Float[Tensor, "batch class"]:
        x = self["conv2d0"](self["conv2d0_pre_relu"](pixels))
        x = self["localresponsenorm0"](self["maxpool0"](x))
        x = self["conv2d1"](self["conv2d1_pre_relu"](x))
        x = self["conv2d2"](self["conv2d2_pre_relu"](x))
        x = self["maxpool1"](self["localresponsenorm1"](x))
        for name in MIXED:
            x = self._mixed(name, x)
            if name in POOLED_AFTER:
                x = self[POOLED_AFTER[name]](x)
        return self["softmax2_pre_activation"](self["avgpool0"](x).flatten(1))

    def _mixed(self, name: str, x: Maps) -> Maps:
        branches = [self[f"{name}_1x1_pre_relu"](x)]
        for size in ("3x3", "5x5"):
            narrow = self[f"{name}_{size}_bottleneck"](self[f"{name}_{size}_bottleneck_pre_relu"](x))
            branches.append(self[f"{name}_{size}_pre_relu"](narrow))
        branches.append(self[f"{name}_pool_reduce_pre_relu"](self[f"{name}_pool"](x)))
        return self[name](self[f"{name}_pre_relu"](*branches))

    def _rectified(self, name: str, layer: nn.Module) -> None:
        self[f"{name}_pre_relu"], self[name] = layer, nn.ReLU()
