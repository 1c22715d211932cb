"""Expanded weights: from the channels of one layer to those of a later one, everything between multiplied out.

Voss et al. 2021 (Visualizing Weights, Distill, doi 10.23915/distill.00024.007): the weights of a unit on an earlier
layer are the gradient of its value at one position in the linearised network (`linearised` says what that is). They
are exact where the path is linear, as over a 1×1 bottleneck without its ReLU; else they are, up to a factor, the
gradient expected if gates open half the time and independently of each other. Where they do not, cases cancel, and
the expansion misleads: `achievable_gradients` gives the bounds that any setting of the gates keeps to, and
`example_gradients` what they were on pictures.

The picture is the smallest in which one position of the target has its whole field in the source, and one backward
pass does all targets: a convolution hands its gradient down only for the targets and positions where there is one.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vesalius.access import intervene, record
from vesalius.dictionaries import Feature
from vesalius.errors import VesaliusError
from vesalius.model import Model
from vesalius.weights.linearised import LINEAR, Exchange
from vesalius.weights.receptive_field import ReceptiveField, receptive_field

ROOM = 2**21
"""Numbers of a gradient on the source that are held at a time: what a cache holds; the targets take turns."""


def expanded_weights(
    model: Model,
    source: str,
    target: str,
    *,
    channels: list[int] | Float[Tensor, "target width"] | None = None,
) -> Float[Tensor, "target source row column"]:
    """Weights of channels of `target` (None: all; a matrix: directions) on what they see of the maps of `source`.

    Row and column run over the relative receptive field. Raises VesaliusError if a site has no maps, a channel does
    not exist, or the target does not depend on the source.

    >>> from vesalius.preprocessing import Preprocessing
    >>> layers = torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 5)
    >>> model = Model(torch.nn.Sequential(*layers), preprocessing=Preprocessing((64, 64), (0.0,) * 3, (1.0,) * 3))
    >>> expanded_weights(model, ":in", "2").allclose(
    ...     torch.einsum("tbij,bs->tsij", layers[2].weight, layers[0].weight[:, :, 0, 0]), atol=1e-6)
    True
    """
    directions = _directions(model, target, channels)
    return _pulled_back(model, source, target, directions[None], _plain)[0]


def achievable_gradients(
    model: Model,
    source: str,
    target: str,
    *,
    channels: list[int] | Float[Tensor, "target width"] | None = None,
) -> tuple[Float[Tensor, "target source row column"], Float[Tensor, "target source row column"]]:
    """The lowest and the highest gradient that any setting of the gates between can give: paths of one sign alone.

    Their sum is the expanded weight. Between two convolutions both are reached; over more they are bounds.
    """
    directions = _directions(model, target, channels)
    signs = torch.stack([directions.clamp(min=0), -directions.clamp(max=0)])
    highest, lowest = _pulled_back(model, source, target, signs, _signed)
    return -lowest, highest


class ExampleGradients(NamedTuple):
    """At the position of each picture where the feature is largest: its value, and its gradient on its field."""

    values: Float[Tensor, " picture"]
    gradients: Float[Tensor, "picture source row column"]


@torch.enable_grad()
def example_gradients(
    model: Model, source: str, feature: Feature, pixels: Float[Tensor, "picture channel height width"]
) -> ExampleGradients:
    """What a feature's weights on `source` are on pictures, with every gate as the picture sets it.

    Positions whose field leaves the maps are left out where there are others.
    """
    field = receptive_field(model, feature.site, source=source)
    with record(model, [source, feature.site], stop=True, gradients=True) as acts:
        model(pixels.clone().requires_grad_())
    seen, values = acts[source], feature.value(acts[feature.site])
    rows, columns = (
        _inside(field, *lengths) for lengths in zip(values.shape[1:], seen.shape[2:], strict=True)
    )
    within = values[:, rows][:, :, columns]
    best = within.flatten(1).argmax(1)
    at_rows, at_columns = rows[best // len(columns)], columns[best % len(columns)]
    chosen = values[torch.arange(len(values)), at_rows, at_columns]
    (gradient,) = torch.autograd.grad(chosen.sum(), seen)
    cut = [
        _cut(one, field.box(int(row), int(column)))
        for one, row, column in zip(gradient, at_rows, at_columns, strict=True)
    ]
    return ExampleGradients(chosen.detach(), torch.stack(cut))


def _directions(
    model: Model, target: str, channels: list[int] | Tensor | None
) -> Float[Tensor, "target width"]:
    width = model.map_shape(target)[0]
    if isinstance(channels, Tensor):
        if channels.dim() != 2 or channels.shape[1] != width:
            raise VesaliusError(
                f"directions of shape {tuple(channels.shape)} were given; expected [direction, {width}] for '{target}'"
            )
        return channels.to(model.device, model.dtype)
    unit = torch.eye(width, device=model.device, dtype=model.dtype)
    if channels is None:
        return unit
    wrong = [channel for channel in channels if not 0 <= channel < width]
    if wrong:
        raise VesaliusError(f"'{target}' has no channel {wrong[0]}; expected 0 to {width - 1}")
    return unit[channels]


def _pulled_back(
    model: Model, source: str, target: str, directions: Float[Tensor, "side target width"], table: "_Table"
) -> Float[Tensor, "side target source row column"]:
    """The gradients of directions at one position of the target, as many at a time as there is room for."""
    place = _place(model, source, target)
    blank = torch.full((1, model.pictures.channels, *place.size), 0.5, device=model.device, dtype=model.dtype)
    width = model.map_shape(source, place.size)[0]
    at_once = max(1, ROOM // (width * math.prod(model.map_shape(source, place.size)[1:]) * len(directions)))
    parts = []
    for some in directions.split(at_once, dim=1):
        leaf: list[Tensor] = []

        def copied(value: Tensor, some: Tensor = some, leaf: list = leaf) -> Tensor:
            """The same maps once for each target, and where the graph begins."""
            leaf.append(value.detach()[:1].expand(some.shape[0] * some.shape[1], -1, -1, -1).requires_grad_())
            return leaf[0]

        with (
            torch.enable_grad(),
            Exchange(table(len(directions))),
            intervene(model, {source: copied}, resize=True),
            record(model, target, stop=True, gradients=True) as acts,
        ):
            model(blank)
            (maps,) = acts.values()
            value = (maps[:, :, place.row, place.column] * some.flatten(0, 1)).sum()
            (gradient,) = torch.autograd.grad(value, leaf[0])
        parts.append(_cut(gradient, place.box).unflatten(0, some.shape[:2]))
    return torch.cat(parts, dim=1)


class _Place(NamedTuple):
    """A picture's height and width, and a position of the target with its field in positions of the source."""

    size: tuple[int, int]
    row: int
    column: int
    box: tuple[int, int, int, int]


def _place(model: Model, source: str, target: str) -> _Place:
    """The smallest picture in which one position of the target has its whole field in the source."""
    field, step = receptive_field(model, target, source=source), receptive_field(model, target).stride
    start = round(field.offset - field.size / 2)
    at = max(0, -(start // field.stride))  # the first whose field begins within
    own = model.pictures.size
    fewer = [
        min(rows - at - 1, (seen - (start + at * field.stride + field.size)) // field.stride)
        for rows, seen in zip(model.map_shape(target)[1:], model.map_shape(source)[1:], strict=True)
    ]
    height, width = (side - less * step for side, less in zip(own, fewer, strict=True))
    return _Place((height, width), at, at, field.box(at, at))


def _inside(field: ReceptiveField, rows: int, seen: int) -> Int[Tensor, " row"]:
    """The positions whose field lies within the maps they see; all of them if there is none."""
    starts = [field.box(row, row)[0] for row in range(rows)]
    whole = [row for row, start in enumerate(starts) if start >= 0 and start + field.size <= seen]
    return torch.tensor(whole or list(range(rows)))


def _cut(maps: Float[Tensor, "*batch rows columns"], box: tuple[int, int, int, int]) -> Tensor:
    """A box of maps, 0 where it leaves them."""
    top, left, bottom, right = box
    rows, columns = maps.shape[-2:]
    return F.pad(maps, (-left, right - columns, -top, bottom - rows))


# ----------------------------------------------------------------------------------- what has a window, backwards
_Table = Callable[[int], Mapping[Any, Callable]]


class _Window(NamedTuple):
    """A convolution or a pool of one picture, and the transpose of its linear part without padding.

    With two sides the transpose gets what raises the targets and what lowers them, and negative weights change sides.
    """

    run: Callable[[Float[Tensor, "1 channel row column"]], Tensor]
    back: Callable[[Float[Tensor, "side target channel row column"]], Tensor]
    stride: tuple[int, int]
    first: tuple[int, int]
    """How far the first window begins above and to the left of the maps."""


class _Apart(torch.autograd.Function):
    """A window over equal pictures: computed once forwards, and backwards only where there is a gradient."""

    @staticmethod
    def forward(ctx, input, window, sides):
        ctx.shape, ctx.window, ctx.sides = input.shape, window, sides
        return window.run(input[:1]).expand(len(input), -1, -1, -1)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.unflatten(0, (ctx.sides, -1))
        result = gradient.new_zeros(*gradient.shape[:2], *ctx.shape[1:])
        touched = gradient.ne(0).any(2).any(0)  # [target, row, column]
        targets, touched = touched.flatten(1).any(1).nonzero()[:, 0], touched.any(0)
        if len(targets):
            (top, bottom), (left, right) = (_span(touched.any(axis)) for axis in (1, 0))
            pulled = ctx.window.back(gradient[:, targets, :, top:bottom, left:right])
            begins = [
                at * stride - first
                for at, stride, first in zip((top, left), ctx.window.stride, ctx.window.first, strict=True)
            ]
            sizes = list(zip(begins, pulled.shape[-2:], ctx.shape[2:], strict=True))
            rows, columns = (slice(max(0, at), min(size, at + length)) for at, length, size in sizes)
            inside = (
                slice(at.start - begin, at.stop - begin)
                for at, begin in zip((rows, columns), begins, strict=True)
            )
            result[:, targets, :, rows, columns] = pulled[(..., *inside)]
        return result.flatten(0, 1), None, None


def _convolved(sides: int) -> Callable[..., Tensor]:
    def run(
        input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1,
    ) -> Tensor:  # fmt: skip
        if not input.requires_grad:
            return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
        stride, dilation = _pair(stride), _pair(dilation)
        spare = [gap * (side - 1) // 2 for gap, side in zip(dilation, weight.shape[2:], strict=True)]
        first = (
            {"same": tuple(spare), "valid": (0, 0)}[padding] if isinstance(padding, str) else _pair(padding)
        )

        def once(picture: Tensor) -> Tensor:
            return F.conv2d(picture, weight, bias, stride, padding, dilation, groups)

        def through(maps: Tensor, kernels: Tensor) -> Tensor:
            return F.conv_transpose2d(maps, kernels, None, stride, 0, 0, groups, dilation)

        def back(maps: Tensor) -> Tensor:
            if sides == 1:
                return through(maps[0], weight)[None]
            (up, down), (raising, lowering) = maps, (weight.clamp(min=0), -weight.clamp(max=0))
            return torch.stack(
                [
                    through(up, raising) + through(down, lowering),
                    through(up, lowering) + through(down, raising),
                ]
            )

        return _Apart.apply(input, _Window(once, back, stride, first), sides)

    return run


def _pooled(sides: int) -> Callable[..., Tensor]:
    """An average pool, or a max pool as one; no window that leaves the maps is ever asked for."""

    def run(
        input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, *settings: Any, **named: Any
    ) -> Tensor:
        named = {name: value for name, value in named.items() if name == "ceil_mode"}
        kernel, stride = _pair(kernel_size), _pair(stride or kernel_size)

        def once(picture: Tensor) -> Tensor:
            return F.avg_pool2d(picture, kernel, stride, padding, count_include_pad=False, **named)

        def back(maps: Tensor) -> Tensor:
            mean = maps.new_full((1, 1, *kernel), 1 / math.prod(kernel))
            single = F.conv_transpose2d(maps.flatten(0, 2)[:, None], mean, None, stride)
            return single[:, 0].unflatten(0, maps.shape[:3])

        return _Apart.apply(input, _Window(once, back, stride, _pair(padding)), sides)

    return run


def _normed(sides: int) -> Callable[..., Tensor]:
    """A batch norm in evaluation, as the convolution of one pixel that it is."""

    def run(
        input: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None = None, bias: Tensor | None = None,
        training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        gain = (variance + eps).rsqrt() * (1 if weight is None else weight)
        shift = (0 if bias is None else bias) - mean * gain
        return _convolved(sides)(input, gain[:, None, None, None], shift, groups=len(gain))

    return run


def _joined(tensors: Any, dim: int = 0, **_: Any) -> Tensor:
    """A concatenation of channels; maps that do not come from the source are there once, and are repeated."""
    most = max(tensor.shape[0] for tensor in tensors) if dim else 1
    return torch.cat([tensor.expand(most, *tensor.shape[1:]) if dim else tensor for tensor in tensors], dim)


def _pair(value: Any) -> tuple[int, int]:
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


def _span(touched: Tensor) -> tuple[int, int]:
    at = touched.nonzero()
    return int(at[0]), int(at[-1]) + 1


def _plain(sides: int) -> Mapping[Any, Callable]:
    """The linear network, its windows computed where they count."""
    pools = dict.fromkeys((F.avg_pool2d, F.max_pool2d, torch.max_pool2d), _pooled(sides))
    windows = {F.conv2d: _convolved(sides), torch.cat: _joined, torch.concat: _joined}
    return {**LINEAR, **pools, **windows, Tensor.__iadd__: torch.add, Tensor.add_: torch.add}


def _signed(sides: int) -> Mapping[Any, Callable]:
    """The same with every weight's sign kept apart."""
    return {**_plain(sides), F.batch_norm: _normed(sides)}
