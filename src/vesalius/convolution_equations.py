"""The equations of a convolutional network, checked on the network itself.

On a random input every module below is recorded once, and what it gave is compared with the definition, written
out at the corners, the edges and the centre of the maps, where a wrong padding shows:

    convolution     out = Σ over the window of the padded input · kernel, plus bias; SAME padding by TensorFlow's rule
    batch norm      out = (in - running mean) / √(running variance + ε) · gain + bias
    response norm   out = in / (bias + alpha · Σ in² over the channels within the radius)^beta
    pooling         out = the maximum over the window, in which padding never wins
    concatenation   out = the branches in the order of their names
    residual        the end of a unit = what enters it, or its shortcut, plus what it adds
    activation      maps = maps_pre, no less than 0 and no more than the rectifier's ceiling
    logits          logits = what reaches the classifier · W_U + b_U

The error of an equation is the largest absolute difference divided by the largest absolute value: 0 is exact.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vesalius.access import record
from vesalius.architectures import Architecture
from vesalius.errors import VesaliusError
from vesalius.networks import mobilenet_v2, resnet_v2, thin_resnet
from vesalius.networks.convolution import Concatenation, LocalResponseNorm, Maps, SameConv2d, SameMaxPool2d
from vesalius.preprocessing import Preprocessing
from vesalius.site import Site

SIDE = 96
"""Pixels of the picture on which networks that read any size are checked."""

Norms = LocalResponseNorm | nn.LocalResponseNorm
Pools = SameMaxPool2d | nn.MaxPool2d


@runtime_checkable
class Opened(Protocol):
    """What the equations need of a model."""

    module: nn.Module
    architecture: Architecture | None
    preprocessing: Preprocessing | None
    name: str


def convolution_errors(model: Opened, *, seed: int = 0) -> dict[str, float]:
    """The largest relative error of every equation that the network has modules for.

    Raises VesaliusError naming the first equation that is off by more than rounding (1e-4 in float32), and where.
    """
    family, module = model.architecture, model.module
    assert family is not None
    layers = family.layer_names(module) if "maps" in family.sites else ()
    rectified = {family.sites["maps"].format(name): family.sites["maps_pre"].format(name) for name in layers}
    logits = (
        [family.sites["logits"], family.sites["logits"].replace(":out", ":in")]
        if "logits" in family.sites
        else []
    )
    parts = dict(checked(module))
    sites = {f"{path}:{port}" for path in parts for port in ("in", "out")}
    sites |= {f"{path}.{part}" for path, one in parts.items() for part in SUMMED.get(type(one), ())}
    sites |= {part for one in parts.values() if isinstance(one, Concatenation) for part in one.parts}
    sites |= {*rectified, *rectified.values(), *logits}
    wanted = {str(Site.parse(site)) for site in sites}
    with torch.no_grad(), record(module, wanted) as acts:
        module(example(model, seed=seed))
        found: dict[str, float] = {}
        for equation, place, got, expected in equations(parts, acts, rectified, module):
            found[equation] = max(found.get(equation, 0.0), demand(model, equation, place, got, expected))
        if logits:
            matrix, bias = (family.weights[role](module, 0) for role in ("W_U", "b_U"))
            given = acts[logits[1]] @ matrix + bias
            found["logits"] = demand(model, "logits", logits[0], acts[logits[0]], given)
    return found


def checked(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module that an equation describes, by its path."""
    kinds = (nn.Conv2d, nn.BatchNorm2d, LocalResponseNorm, nn.LocalResponseNorm, SameMaxPool2d, nn.MaxPool2d)
    for path, part in module.named_modules():
        adds = not isinstance(part, mobilenet_v2.InvertedResidual) or part.adds
        if isinstance(part, (*kinds, Concatenation, *SUMMED)) and adds:
            yield path, part


def example(model: Opened, *, seed: int) -> Maps:
    """One random input of the module, as small as the network allows."""
    weights = next(model.module.parameters())
    channels, (rows, columns) = 3, (SIDE, SIDE)
    if model.preprocessing is not None:
        channels, size = model.preprocessing.channels, model.preprocessing.size
        rows, columns = size if model.preprocessing.fixed else (min(side, SIDE) for side in size)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((1, channels, rows, columns), generator=generator).to(weights)


def equations(
    parts: Mapping[str, nn.Module], acts: Mapping[str, Tensor], rectified: Mapping[str, str], root: nn.Module
) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    """Name of the equation, where it is, what was recorded and what was expected."""
    for path, part in parts.items():
        given, out = acts[f"{path}:in"], acts[f"{path}:out"]
        if isinstance(part, nn.Conv2d):
            yield "convolution", path, some(out), convolved(given, part, out)
        elif isinstance(part, nn.BatchNorm2d):
            yield "batch norm", path, out, batch_normed(given, part)
        elif isinstance(part, Norms):
            yield "response norm", path, out, response_normed(given, part)
        elif isinstance(part, Pools):
            yield "pooling", path, some(out), pooled(given, part, out)
        elif isinstance(part, Concatenation):
            yield "concatenation", path, out, torch.cat([acts[one] for one in part.parts], 1)
        else:
            yield "residual", path, out, added(path, part, given, acts)
    for post, pre in rectified.items():
        act = root.get_submodule(post.removesuffix(":out"))
        yield "activation", post, acts[post], rectify(act)(acts[pre])


def demand(model: Opened, equation: str, place: str, got: Tensor, expected: Tensor) -> float:
    """The relative error, if it is small enough for the precision the network computes in."""
    error = float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    allowed = max(1e-4, 8 * torch.finfo(next(model.module.parameters()).dtype).eps)
    if not error <= allowed:
        raise VesaliusError(
            f"{model.name} breaks the equation '{equation}' at '{place}': relative error {error:.2g}, "
            f"expected at most {allowed:.2g}"
        )
    return error


# -------------------------------------------------------------------------------------------------- the definitions


def spots(out: Maps) -> list[tuple[int, int]]:
    """Corners, edges and centre of a map."""
    rows, columns = ({0, size // 2, size - 1} for size in out.shape[2:])
    return [(row, column) for row in sorted(rows) for column in sorted(columns)]


def some(out: Maps) -> Float[Tensor, "batch channel spot"]:
    return torch.stack([out[:, :, row, column] for row, column in spots(out)], -1)


def windows(
    given: Maps,
    out: Maps,
    *,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    before: tuple[int, int],
    fill: float,
) -> Float[Tensor, "batch channel spot row column"]:
    """What the spots of `out` look at; `before` is the padding above and left, and `fill` what it is made of."""
    needed = [(size - 1) * step + side for size, step, side in zip(out.shape[2:], stride, kernel)]
    after = [max(need - size - first, 0) for need, size, first in zip(needed, given.shape[2:], before)]
    padded = nn.functional.pad(given, (before[1], after[1], before[0], after[0]), value=fill)
    looked = [
        padded[
            :,
            :,
            row * stride[0] : row * stride[0] + kernel[0],
            column * stride[1] : column * stride[1] + kernel[1],
        ]
        for row, column in spots(out)
    ]
    return torch.stack(looked, 2)


def same_before(given: Maps, kernel: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int]:
    """TensorFlow's SAME: ⌈size / stride⌉ outputs, and the smaller half of the padding they need comes before."""
    sizes = zip(given.shape[2:], kernel, stride)
    top, left = (max((-(-size // step) - 1) * step + side - size, 0) // 2 for size, side, step in sizes)
    return top, left


def convolved(given: Maps, conv: nn.Conv2d, out: Maps) -> Float[Tensor, "batch channel spot"]:
    kernel, stride = pair(conv.kernel_size), pair(conv.stride)
    same = isinstance(conv, SameConv2d) or conv.padding == "same"
    before = (
        same_before(given, kernel, stride) if same else pair(0 if conv.padding == "valid" else conv.padding)
    )
    looked = windows(given, out, kernel=kernel, stride=stride, before=before, fill=0.0)
    looked = rearrange(
        looked, "batch (group c) spot row column -> batch group c spot row column", group=conv.groups
    )
    weight = rearrange(conv.weight, "(group out) c row column -> group out c row column", group=conv.groups)
    result = einsum(looked, weight, "batch g c spot row column, g out c row column -> batch g out spot")
    result = rearrange(result, "batch g out spot -> batch (g out) spot")
    return result if conv.bias is None else result + conv.bias[:, None]


def pooled(given: Maps, pool: Any, out: Maps) -> Float[Tensor, "batch channel spot"]:
    kernel, stride = pair(pool.kernel_size), pair(pool.stride)
    before = same_before(given, kernel, stride) if isinstance(pool, SameMaxPool2d) else pair(pool.padding)
    looked = windows(given, out, kernel=kernel, stride=stride, before=before, fill=-torch.inf)
    return looked.amax((-2, -1))


def batch_normed(given: Maps, norm: Any) -> Maps:
    mean, variance, gain, bias = (
        one[:, None, None] for one in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (given - mean) / (variance + norm.eps).sqrt() * gain + bias


def response_normed(given: Maps, norm: Norms) -> Maps:
    """Torch and Caffe divide alpha by the number of channels in the window, TensorFlow does not."""
    if isinstance(norm, LocalResponseNorm):
        radius, alpha, bias = int(norm.depth_radius), float(norm.alpha), float(norm.bias)
    else:
        radius, alpha, bias = norm.size // 2, norm.alpha / norm.size, norm.k
    channels = torch.arange(given.shape[1])
    near = ((channels[:, None] - channels).abs() <= radius).to(given)
    squares = einsum(near, given.square(), "out c, batch c row column -> batch out row column")
    return given / (bias + alpha * squares) ** float(norm.beta)


SUMMED: Mapping[type[nn.Module], tuple[str, ...]] = {
    mobilenet_v2.InvertedResidual: ("project",),
    resnet_v2.Unit: ("shortcut", "conv3"),
    thin_resnet.Unit: ("shortcut", "conv3"),
}
"""What is recorded inside a unit for its sum."""


def added(path: str, unit: nn.Module, given: Maps, acts: Mapping[str, Tensor]) -> Maps:
    """What the end of a unit has to be."""
    inner = [acts[f"{path}.{part}"] for part in SUMMED[type(unit)]]
    if isinstance(unit, mobilenet_v2.InvertedResidual):
        return given + inner[0]
    total = inner[-2] + inner[-1]
    return total.clamp(min=0) if isinstance(unit, thin_resnet.Unit) else total


def rectify(act: nn.Module) -> Callable[[Tensor], Tensor]:
    """The rectifier of a layer by its definition; another nonlinearity is taken at its word."""
    if isinstance(act, nn.ReLU | nn.ReLU6):
        ceiling = 6.0 if isinstance(act, nn.ReLU6) else torch.inf
        return lambda pre: pre.clamp(0, ceiling)
    return act


def pair(value: Any) -> tuple[int, int]:
    """The same for rows and columns, unless given for each."""
    return (value, value) if isinstance(value, int) else tuple(value)
