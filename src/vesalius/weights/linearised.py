"""A network made linear while a block is open, so that its gradient is its weights multiplied out.

Voss et al. 2021 (Visualizing Weights, Distill, doi 10.23915/distill.00024.007): to read weights across several
layers, "non-linearities are ignored or replaced by the closest linear operation". Here:

- ReLU, ReLU6 and every other rectifier or squashing of one number (SiLU, hard swish, GELU, ELU, tanh, a clamp) is
  left out. It is the choice that keeps each weight as it is; between it and the expected gradient of a ReLU open
  half the time lies a factor only;
- a max pool becomes the average pool of the same window (over the pixels inside the picture);
- local response normalisation becomes what it is at small activations, a division by k^β;
- what computes a gate or a scale (sigmoid, softmax, a power, a square root) is held constant, so that a product
  with it is linear: so are squeeze-and-excitation gates and norms written out by hand;
- convolutions, average pools, batch norms in evaluation, sums and concatenations are linear and run as they are.

The block watches the functions of torch that run, whoever calls them; no module is changed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vesalius.errors import VesaliusError


@contextmanager
def linearised() -> Iterator[None]:
    """Every network that runs within the block runs as its closest linear (affine) network.

    >>> x = torch.tensor([-2.0, 3.0])
    >>> with linearised():
    ...     torch.nn.ReLU()(x)
    tensor([-2.,  3.])
    """
    with Exchange(LINEAR):
        yield


class Exchange(TorchFunctionMode):
    """While on, functions of torch named in a table run as what the table says."""

    def __init__(self, table: Mapping[Any, Callable]) -> None:
        super().__init__()
        self.table = table

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return self.table.get(function, function)(*args, **(kwargs or {}))


def _identity(input: Tensor, *_: Any, **__: Any) -> Tensor:
    return input


def _average(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """The average pool of a max pool's window; what lies outside the picture does not count, as in the max."""
    if return_indices or any(
        step != 1 for step in (dilation if isinstance(dilation, tuple) else (dilation,))
    ):
        raise VesaliusError(
            "a max pool that is dilated or returns indices was met; no average pool stands for it"
        )
    return F.avg_pool2d(input, kernel_size, stride or None, padding, ceil_mode, count_include_pad=False)


def _adaptive_average(input: Tensor, output_size: Any, return_indices: bool = False) -> Tensor:
    return F.adaptive_avg_pool2d(input, output_size)


def _scaled(input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """Local response normalisation where activations are small."""
    return input / k**beta


def _padded(input: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
    """Padding with the lowest number, as before a max pool, is padding with nothing."""
    return F.pad(input, pad, mode, None if value is not None and value < -1e30 else value)


def _held(function: Callable) -> Callable[..., Tensor]:
    """The same function, its result a constant."""
    return lambda *args, **kwargs: function(*args, **kwargs).detach()


_ELEMENTWISE = (
    *("relu", "relu_", "relu6", "hardtanh", "hardtanh_", "leaky_relu", "leaky_relu_", "elu", "elu_", "celu"),
    *("selu", "rrelu", "prelu", "gelu", "silu", "mish", "hardswish", "softplus", "tanh"),
    *("clamp", "clamp_", "clamp_min", "clamp_min_", "clamp_max", "clip", "clip_", "tanh_"),
)
_GATES = (
    "sigmoid",
    "sigmoid_",
    "hardsigmoid",
    "softmax",
    "pow",
    "rsqrt",
    "sqrt",
    "reciprocal",
    "__pow__",
    "__rpow__",
)


def _named(names: tuple[str, ...]) -> list[Callable]:
    """The functions of these names wherever torch has them: in `functional`, in `torch`, as methods of tensors."""
    homes = (vars(F), vars(torch), {name: getattr(Tensor, name, None) for name in names})
    found = (home.get(name) for home in homes for name in names)
    return [function for function in found if function is not None]


LINEAR: Mapping[Any, Callable] = {
    **dict.fromkeys(_named(_ELEMENTWISE), _identity),
    **{function: _held(function) for function in _named(_GATES)},
    F.max_pool2d: _average,
    torch.max_pool2d: _average,
    F.adaptive_max_pool2d: _adaptive_average,
    F.local_response_norm: _scaled,
    F.pad: _padded,
}
"""What stands for each function that is not linear."""
