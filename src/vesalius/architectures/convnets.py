"""The published convolutional networks: their rectified maps in order, as the papers name them.

`maps@4` is the fifth of these layers and `maps_pre@4` the same before the rectifier. Aliases are the short names
of the circuits thread (`3b`), of the papers of VGG (`3_3`) and of slim's ResNetV2 (`B2_U1_conv2`).
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from vesalius.architectures import Architecture, Shape, register
from vesalius.networks import inception_v1, inception_v3
from vesalius.networks.alexnet import AlexNet, OneTower
from vesalius.networks.efficientnet_lite import EfficientNetLite
from vesalius.networks.mobilenet_v2 import MobileNetV2
from vesalius.networks.plain import PlainNetwork
from vesalius.networks.resnet_v2 import ResNetV2
from vesalius.networks.thin_resnet import ThinResNet
from vesalius.networks.vgg import HED, VGG

Layers = tuple[str, ...] | Callable[[Any], tuple[str, ...]]


def inverted_residuals(module: Any) -> tuple[str, ...]:
    """The maps inside the blocks, which are rectified; what the blocks hand on is not."""
    blocks = [f"block{index}" for index in range(module.depth)]
    inner = [f"{block}.{part}" for block in blocks for part in ("expand", "depthwise")]
    return ("stem", *inner[1:], "head")


def residual_units(module: Any) -> tuple[str, ...]:
    return tuple(name for name, part in module.named_modules() if isinstance(part, nn.ReLU))


def table(
    kind: type[nn.Module],
    *,
    layers: Layers,
    default_site: str,
    classifier: str = "",
    aliases: Mapping[str, str] | None = None,
) -> Architecture:
    """The table of a network whose maps are `NAME` and `NAME_pre_relu`; `classifier` is its last dense layer."""

    def unembedding(module: Any, layer: int) -> Tensor:
        return module.get_parameter(f"{classifier}.weight").T

    def bias(module: Any, layer: int) -> Tensor:
        return module.get_parameter(f"{classifier}.bias")

    def shape(module: Any) -> Shape:
        named = layers(module) if callable(layers) else layers
        return Shape(len(named), d_vocab=len(bias(module, 0)) if classifier else 0)

    sites = {"maps": "{}:out", "maps_pre": "{}_pre_relu:out"}
    return Architecture(
        name=kind.__name__,
        modules=(kind.__name__,),
        matches=lambda module: isinstance(module, kind),
        sites=sites | ({"logits": f"{classifier}:out"} if classifier else {}),
        weights={"W_U": unembedding, "b_U": bias} if classifier else {},
        shape=shape,
        causal=False,
        inputs="image",
        layers=layers,
        aliases=aliases or {},
        default_site=default_site,
    )


ALEXNET = ("conv1", "conv2", "conv3", "conv4", "conv5")
RESNET_UNITS = {
    f"B{block}_U{unit}_conv{conv}": f"block{block}.unit{unit}.conv{conv}"
    for block, units in enumerate((3, 4, 6, 3), 1)
    for unit in range(1, units + 1)
    for conv in (1, 2)
}
VGG_MAPS = {f"{block}_{conv}": f"conv{block}_{conv}" for block in range(1, 6) for conv in range(1, 5)}

register(
    table(
        inception_v1.InceptionV1,
        layers=inception_v1.LAYERS,
        default_site="mixed3b",
        classifier="softmax2_pre_activation",
        aliases={name.removeprefix("mixed"): name for name in inception_v1.MIXED},
    )
)
register(
    table(
        inception_v3.InceptionV3, layers=inception_v3.LAYERS, default_site="mixed2", classifier="predictions"
    )
)
register(table(AlexNet, layers=ALEXNET, default_site="conv3", classifier="fc8"))
register(table(OneTower, layers=ALEXNET, default_site="conv3", classifier="fc8"))
register(
    table(
        VGG, layers=lambda module: module.layers, default_site="conv3_3", classifier="fc8", aliases=VGG_MAPS
    )
)
register(table(HED, layers=lambda module: module.layers, default_site="conv3_3", aliases=VGG_MAPS))
register(
    table(
        ResNetV2,
        layers=residual_units,
        default_site="block2.unit1.conv2",
        classifier="logits",
        aliases=RESNET_UNITS,
    )
)
register(table(ThinResNet, layers=residual_units, default_site="stage2.unit3.conv2", classifier="classifier"))
register(
    table(
        EfficientNetLite, layers=inverted_residuals, default_site="block6.depthwise", classifier="classifier"
    )
)
register(
    table(MobileNetV2, layers=inverted_residuals, default_site="block6.depthwise", classifier="classifier")
)
register(
    table(PlainNetwork, layers=lambda module: module.layers, default_site="conv4", classifier="classifier")
)
