"""A convnet that sees curves, every weight written from a rule: the ground truth of the vision methods.

The handwritten curve circuit of Cammarata et al. 2021 ("Curve Circuits", distill.pub/2020/circuits/curve-circuits)
made small: edges of both polarities → lines → small curves, beside the lines → 24 curves, 15° apart → the same
curves, a circle and an evolute, whose means over the picture are the logits.

Known by construction, and said in `model.module.units[LAYER]`: what each unit is and which way it faces. A quarter
turn of the picture takes the curve facing θ to the one facing θ + 90 exactly; 15° do so as well as a grid of pixels
allows. Curves inhibit those that face the other way, by the published profile; without these negative weights a
curve echoes when its opposite is shown.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vesalius.architectures import Architecture, Shape
from vesalius.model import Model
from vesalius.preprocessing import Preprocessing
from vesalius.rules import CURVES, LINES, Profile, Unit, contour, copies, edges, family, ring, sides

SIZE = 60
"""Pixels of the default picture; a multiple of 4, so that every layer is as symmetric as the rules."""
RED, CYAN = Unit("red"), Unit("cyan")
POLYSEMANTIC = Unit("curve or red", 45.0)
LAYERS = ("edges", "lines", "small_curves", "curves", "shapes")
ARCHITECTURE = Architecture(
    name="curve-network",
    modules=("CurveNetwork",),
    sites={"maps": "{}:out", "maps_pre": "{}_pre_relu:out", "logits": "logits:out"},
    weights={},
    shape=lambda module: Shape(n_layers=len(LAYERS), d_vocab=module.shapes_pre_relu.out_channels),
    inputs="image",
    norm="none",
    positions="none",
    causal=False,
    layers=LAYERS,
    aliases={"1": "edges", "2": "lines", "3a": "small_curves", "3b": "curves", "4a": "shapes"},
    default_site="curves",
)

Part = tuple[Sequence[Unit], Sequence[Unit], Tensor]
"""`(targets, sources, kernels)`: one rule, applied."""


class CurveNetwork(nn.Sequential):
    """Convolutions and ReLUs by name; `units` says what each channel of each layer stands for."""

    units: dict[str, list[Unit]]


def curve_network(
    *,
    negative: bool = True,
    polysemantic: bool = False,
    colour_contrast: bool = False,
    shuffle: int | None = None,
) -> Model:
    """24 curve detectors in the layer `curves`, by rules alone.

    `negative=False` deletes the negative weights onto the curves, as the paper does to show what they are for.
    `polysemantic` adds a unit that fires for a curve facing 45° and for anything red; `colour_contrast` a second
    family, 8 units 45° apart that want red on the side they face and cyan on the other. `shuffle` seeds a
    permutation of the units of `curves`, so that no family is found by being in order.

    >>> model = curve_network()
    >>> str(model.module.units["curves"][3])
    'curve 45°'
    >>> model.logits(torch.rand(1, 3, 60, 60, generator=torch.Generator().manual_seed(0))).shape
    torch.Size([1, 26])
    """
    colours = [RED, CYAN] if polysemantic or colour_contrast else []
    all_round, lines = family("edge", 24), family("line", 12, period=180.0)
    small, curves = family("small curve", 24), family("curve", 24)
    contrasts = family("colour contrast", 8) if colour_contrast else []
    double = [POLYSEMANTIC] if polysemantic else []
    circle, evolute = [Unit("circle")], [Unit("evolute")]
    units = {
        "edges": all_round + colours,
        "lines": lines + colours,
        "small_curves": small + lines + colours,
        "curves": _shuffled(curves + contrasts + double, shuffle),
        "shapes": curves + circle + evolute,
    }
    along_lines = [
        (lines, all_round, 4 * _line(lines, all_round, stride=2, width=1.5, reach=4)),
        (colours, colours, copies(colours, colours, size=5)),
    ]
    along_small_arcs = [
        (small, lines, 4 * _arc(small, lines, radius=10, width=3, reach=8)),
        (lines, lines, 4 * _line(lines, lines, stride=4, width=3, reach=8)),
        (colours, colours, copies(colours, colours, size=5)),
    ]
    along_arcs = [
        (wanted, sources, gain * _arc(wanted, sources, radius=14, width=4, reach=10, profile=profile))
        for wanted in (curves, double)
        for sources, gain, profile in ((small, 3, CURVES), (lines, 1, LINES))
    ]
    in_colour = [
        (contrasts, colours, 2 * sides(contrasts, colours, size=5, stride=4, reach=6)),
        (double, [RED], 2 * copies([RED], [RED], size=5)),
    ]
    around = [
        (curves, curves, copies(curves, curves, size=9)),
        (circle, curves, 2 * ring(curves, size=9, stride=4, radius=14, width=4)),
        (evolute, curves, 2 * ring(curves, size=9, stride=4, radius=14, width=4, inward=True)),
    ]
    onto_curves = _layer(units, "curves", [*along_arcs, *in_colour], before="small_curves", threshold=0.12)
    if not negative:
        onto_curves.weight.data.clamp_(min=0)
    convolutions = {
        "edges": _first(all_round, colours),
        "lines": _layer(units, "lines", along_lines, before="edges", threshold=0.03),
        "small_curves": _layer(units, "small_curves", along_small_arcs, before="lines", threshold=0.12),
        "curves": onto_curves,
        "shapes": _layer(units, "shapes", around, before="curves", threshold=0.05),
    }
    module = _stacked(convolutions)
    module.units = units
    return Model(
        module,
        preprocessing=Preprocessing(size=(SIZE, SIZE), mean=(0.5,) * 3, sd=(0.25,) * 3),
        labels=tuple(map(str, units["shapes"])),
        architecture=ARCHITECTURE,
        name="curve-network",
    )


def _shuffled(units: list[Unit], seed: int | None) -> list[Unit]:
    if seed is None:
        return units
    order = torch.randperm(len(units), generator=torch.Generator().manual_seed(seed))
    return [units[number] for number in order.tolist()]


def _line(
    targets: Sequence[Unit], sources: Sequence[Unit], *, stride: int, width: float, reach: float
) -> Tensor:
    return contour(targets, sources, size=5, stride=stride, radius=math.inf, width=width, reach=reach)


def _arc(
    targets: Sequence[Unit],
    sources: Sequence[Unit],
    *,
    radius: float,
    width: float,
    reach: float,
    profile: Profile = LINES,
) -> Tensor:
    return contour(
        targets, sources, size=5, stride=4, radius=radius, width=width, reach=reach, profile=profile
    )


def _first(all_round: Sequence[Unit], colours: Sequence[Unit]) -> nn.Conv2d:
    """On pixels, every other one: edges read brightness, `red` and `cyan` what is more or less red than bright."""
    kernels = edges(all_round, size=8, wavelength=8, width=2.2)[:, None] / 3
    weight = torch.zeros(len(all_round) + len(colours), 3, 8, 8)
    weight[: len(all_round)] = kernels
    for row, sign in zip(range(len(all_round), len(weight)), (1.0, -1.0)):
        weight[row] = sign * torch.tensor([1.0, -0.5, -0.5])[:, None, None] / (4 * 64)
    return _convolution(weight, torch.zeros(len(weight)), stride=2)


def _layer(
    units: dict[str, list[Unit]], layer: str, parts: Sequence[Part], *, before: str, threshold: float
) -> nn.Conv2d:
    """The rules of a layer side by side; what no rule connects has weight 0. Colours have no threshold."""
    size = next(kernels.shape[-1] for _, _, kernels in parts)
    weight = torch.zeros(len(units[layer]), len(units[before]), size, size)
    for targets, sources, kernels in parts:
        if targets:
            rows = torch.tensor([units[layer].index(unit) for unit in targets])
            columns = torch.tensor([units[before].index(unit) for unit in sources])
            weight[rows[:, None], columns] = kernels
    bias = torch.tensor([0.0 if unit in (RED, CYAN) else -threshold for unit in units[layer]])
    return _convolution(weight, bias, stride=1)


def _convolution(weight: Tensor, bias: Tensor, *, stride: int) -> nn.Conv2d:
    targets, sources, size, _ = weight.shape
    padding = (size - 1) // 2
    convolution = nn.utils.skip_init(nn.Conv2d, sources, targets, size, stride=stride, padding=padding)
    assert isinstance(convolution, nn.Conv2d)
    convolution.weight.data, convolution.bias.data = weight, bias
    return convolution


def _stacked(convolutions: dict[str, nn.Conv2d]) -> CurveNetwork:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for name, convolution in convolutions.items():
        parts[f"{name}_pre_relu"], parts[name] = convolution, nn.ReLU()
        if name == "lines":
            parts["pool"] = nn.AvgPool2d(2)
    return CurveNetwork(parts | {"mean": nn.AdaptiveAvgPool2d(1), "logits": nn.Flatten()})
