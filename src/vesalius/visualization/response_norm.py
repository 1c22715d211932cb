"""Local response normalisation as a product with a band of ones, for networks that have it.

Krizhevsky et al. 2012: each value is divided by a power of the mean square of the channels about it. torch takes that
mean by a three-dimensional average pool, which on a processor costs more than all convolutions of the layers
before it; as a 1×1 convolution it gives the same numbers up to rounding, and costs next to nothing.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class BandedNorm(TorchFunctionMode):
    """Within this block `local_response_norm` of maps is computed by a band, whoever calls it."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is F.local_response_norm and args and args[0].dim() == 4:
            return banded(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def banded(
    input: Float[Tensor, "batch channel row column"],
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
) -> Float[Tensor, "batch channel row column"]:
    """What `torch.nn.functional.local_response_norm` computes.

    >>> x = torch.linspace(-9, 9, 48).reshape(1, 12, 2, 2)
    >>> torch.allclose(banded(x, 5, 0.1, 0.5), F.local_response_norm(x, 5, 0.1, 0.5))
    True
    """
    number = torch.arange(input.shape[1], device=input.device)
    apart = number[None] - number[:, None]
    band = ((apart >= -(size // 2)) & (apart <= (size - 1) // 2)).to(input.dtype) * (alpha / size)
    power = F.conv2d(input.square(), band[:, :, None, None], input.new_full((len(number),), k))
    return input * (power.rsqrt() if beta == 0.5 else power.pow(-beta))
