"""The receptive field of a site: which pixels, or which positions of an earlier layer, each of its positions sees.

Found, not looked up: the network runs with every kernel replaced by the mean over its window and everything else
made linear, so that nothing cancels, and the field is where the gradient of a position is not 0 (Luo et al. 2016,
Understanding the Effective Receptive Field, arXiv 1701.04128, call it the theoretical receptive field). So it is
right for any path of convolutions and pools, with SAME padding on even strides and with branches that differ. Gates
over the whole picture (squeeze and excitation) are held constant and do not count.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vesalius.access import record
from vesalius.errors import VesaliusError
from vesalius.model import Model
from vesalius.weights.linearised import LINEAR, Exchange

GROWTH = (0, 128, 384, 1024)
"""What is added to the picture's sides until a field lies within it; multiples of all strides, so that padding
falls as in the network's own size."""


@dataclass(frozen=True)
class ReceptiveField:
    """Position i sees `size` pixels about `offset + i · stride`; pixel p spans p to p + 1.

    Where the field is not square, the larger side stands for both.
    """

    size: int
    stride: int
    offset: float
    """The centre of what the first position sees."""

    def box(self, row: int, column: int) -> tuple[int, int, int, int]:
        """Top, left, bottom, right of what one position sees, the last two exclusive; it may leave the picture.

        >>> ReceptiveField(size=7, stride=2, offset=0.5).box(1, 10)
        (-1, 17, 6, 24)
        """
        top, left = (round(self.offset + at * self.stride - self.size / 2) for at in (row, column))
        return top, left, top + self.size, left + self.size


def receptive_field(model: Model, site: str, *, source: str = "") -> ReceptiveField:
    """What each position of `site` sees of the picture, or of the maps of the earlier site `source`.

    It holds for the network's own picture size and for any that differs from it by a multiple of its strides.
    Raises VesaliusError if the site has no maps, sees the whole picture, or does not depend on the source.

    >>> from vesalius.preprocessing import Preprocessing
    >>> layers = nn.Conv2d(3, 4, 7, stride=2, padding=3), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)
    >>> model = Model(nn.Sequential(*layers), preprocessing=Preprocessing((64, 64), (0,) * 3, (1,) * 3))
    >>> receptive_field(model, "2")
    ReceptiveField(size=11, stride=4, offset=0.5)
    """
    height, width = model.preprocessing.size if model.preprocessing else (224, 224)
    known, key = _known.setdefault(model.module, {}), (site, source, height, width)
    for more in GROWTH:
        spans = None if key in known else _spans(model, site, source, (height + more, width + more))
        if spans is not None:
            size, stride, start = max(spans)
            known[key] = ReceptiveField(size, stride, start + size / 2)
        if key in known:
            return known[key]
    raise VesaliusError(
        f"each position of '{site}' sees all of {source or 'the picture'}, however large; it has no field"
    )


_known: WeakKeyDictionary[nn.Module, dict[tuple, ReceptiveField]] = WeakKeyDictionary()
"""A field depends on what a module is built of, not on its weights, and is found once."""


@torch.enable_grad()
def _spans(model: Model, site: str, source: str, size: tuple[int, int]) -> list[tuple[int, int, int]] | None:
    """Size, stride and start of the field along height and along width; None if the picture is too small to tell.

    The first position shows where fields end, the last one where they begin.
    """
    channels = model.preprocessing.channels if model.preprocessing else 3
    pixels = torch.zeros(1, channels, *size, dtype=torch.float64, device=model.device, requires_grad=True)
    with (
        Exchange(_FOOTPRINT),
        record(model, [site, source] if source else site, stop=True, gradients=True) as acts,
    ):
        model.module(pixels)
    maps, seen = acts[site], acts[source] if source else pixels
    if maps.dim() != 4 or seen.dim() != 4:
        raise VesaliusError(
            f"'{site}' has no maps [batch, channel, row, column]; a receptive field is one of maps"
        )
    rows, columns = maps.shape[2:]
    if min(rows, columns) < 2:
        return None
    first, second, last = (
        _edges(maps[0, 0, row, column], seen, f"'{site}' does not depend on '{source}'")
        for row, column in ((0, 0), (rows - 2, columns - 2), (rows - 1, columns - 1))
    )
    spans = []
    for axis, length in enumerate((rows, columns)):
        stride = last[axis][0] - second[axis][0]
        if second[axis][0] == 0 or first[axis][1] >= seen.shape[2 + axis]:
            return None
        start = last[axis][0] - (length - 1) * stride
        spans.append((first[axis][1] - start, stride, start))
    return spans


def _edges(value: Tensor, seen: Tensor, otherwise: str) -> list[tuple[int, int]]:
    """First and one past the last row, and column, on which a value depends."""
    (gradient,) = torch.autograd.grad(value, seen, retain_graph=True, allow_unused=True)
    if gradient is None or not gradient.any():
        raise VesaliusError(otherwise)
    touched = (gradient[0] != 0).any(0)
    lines = (touched.any(1).nonzero(), touched.any(0).nonzero())
    return [(int(line[0]), int(line[-1]) + 1) for line in lines]


# ------------------------------------------------------------------------------------------------------- the footprint
# All channels of a value are one and the same map, a view of its first: a network costs what one channel costs.


def _window(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """A convolution, its kernel the mean over all its window spans, rows first and then columns."""
    maps, gaps, strides = input[:, :1], _pair(dilation), _pair(stride)
    for axis in (0, 1):
        shape, step, margin = [1, 1], [1, 1], [0, 0]
        shape[axis], step[axis] = gaps[axis] * (weight.shape[2 + axis] - 1) + 1, strides[axis]
        if not isinstance(padding, str):
            margin[axis] = _pair(padding)[axis]
        kernel = maps.new_full((1, 1, *shape), 1 / shape[axis])
        maps = F.conv2d(maps, kernel, None, step, padding if isinstance(padding, str) else margin)
    return _all(maps, weight.shape[0])


def _layer(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return input.mean(-1, keepdim=True).expand(*input.shape[:-1], weight.shape[0])


def _joined(tensors: Any, dim: int = 0, **_: Any) -> Tensor:
    """A concatenation of channels: each sees what any of them sees."""
    if dim not in (1, -3):
        return torch.cat(tensors, dim)
    maps: list[Tensor] = [tensor[:, :1] for tensor in tensors]
    return _all(sum(maps[1:], maps[0]), sum(tensor.shape[1] for tensor in tensors))


def _each(function: Callable) -> Callable[..., Tensor]:
    """What does the same to every channel, done once."""

    def run(input: Tensor, *settings: Any, **named: Any) -> Tensor:
        return _all(function(input[:, :1], *settings, **named), input.shape[1])

    return run


def _union(function: Callable) -> Callable[..., Tensor]:
    """A sum, difference or product: it sees what either map sees."""

    def run(*operands: Any, **kwargs: Any) -> Tensor:
        tensors = [operand for operand in operands if isinstance(operand, Tensor)]
        shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
        maps = [tensor[:, :1] for tensor in tensors if tensor.dim() == 4 and tensor.shape[2:] == shape[2:]]
        return _all(sum(maps[1:], maps[0]), shape[1]) if maps else function(*operands, **kwargs)

    return run


def _pair(value: Any) -> tuple[int, int]:
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


def _all(one: Tensor, channels: int) -> Tensor:
    return one.expand(-1, channels, -1, -1)


_BINARY = [
    getattr(home, name)
    for home, names in (
        (torch, ("add", "sub", "mul", "div")),
        (Tensor, ("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_")),
        (Tensor, ("__add__", "__radd__", "__iadd__", "__sub__", "__rsub__", "__isub__")),
        (Tensor, ("__mul__", "__rmul__", "__imul__", "__truediv__", "__itruediv__")),
    )
    for name in names
]
_FOOTPRINT: Mapping[Any, Callable] = {
    **LINEAR,
    **{function: _union(function) for function in _BINARY},
    F.conv2d: _window,
    F.linear: _layer,
    **{pool: _each(LINEAR[pool]) for pool in (F.max_pool2d, torch.max_pool2d)},
    F.avg_pool2d: _each(F.avg_pool2d),
    F.batch_norm: lambda input, *_, **__: input,
    torch.cat: _joined,
    torch.concat: _joined,
    F.local_response_norm: lambda input, *_, **__: input,
}
