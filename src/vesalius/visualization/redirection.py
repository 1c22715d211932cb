"""Redirected gradients of rectifiers, for pictures that leave a unit off.

A unit that is off for a picture gives no gradient, so there is no way to turn it on. Where the gradient through
a ReLU is zero for a whole picture of the batch, all of it is passed instead, except what would push an input that
is off still lower (Lucid's rule; for ReLU6 also what would push a saturated input still higher). Other pictures of
the batch, and every ReLU with some gradient of its own, are left alone. Gradients are those of a loss, which falls.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

RELU = {torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu, F.relu_}
CLIPPED = {F.relu6, F.hardtanh, F.hardtanh_}


@contextmanager
def redirected(pictures: Bool[Tensor, " batch"]) -> Iterator[None]:
    """Within this block the ReLUs and ReLU6s that are called redirect the gradients of these pictures of the batch.

    Works on any module, since the functions are caught and not the modules; values forward are the usual ones.

    >>> x = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    >>> with redirected(torch.tensor([True])):
    ...     y = torch.relu(x)
    >>> torch.autograd.grad(y, x, torch.tensor([[-3.0, 3.0]]))[0]
    tensor([[-3.,  0.]])
    """
    if not bool(pictures.any()):
        yield
        return
    with _Rectifiers(pictures):
        yield


class _Rectifiers(TorchFunctionMode):
    """Puts the rule in place of rectifiers, wherever they are called from."""

    def __init__(self, pictures: Bool[Tensor, " batch"]) -> None:
        super().__init__()
        self.pictures = pictures

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in RELU:
            return _Redirected.apply(args[0] if args else kwargs["input"], float("inf"), self.pictures)
        if func in CLIPPED:
            value, low, high = _range(func, *args, **kwargs)
            if low == 0.0:
                return _Redirected.apply(value, high, self.pictures)
        return func(*args, **kwargs)


def _range(
    func: Callable, input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> tuple[Tensor, float, float]:
    return (input, 0.0, 6.0) if func is F.relu6 else (input, min_val, max_val)


class _Redirected(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "batch *axes"], ceiling: float, pictures: Bool[Tensor, " chosen"]
    ) -> Float[Tensor, "batch *axes"]:
        ctx.save_for_backward(x)
        ctx.ceiling, ctx.pictures = ceiling, pictures.to(x.device)
        return x.clamp(0.0, ceiling)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,), (grad,) = ctx.saved_tensors, grads
        usual = torch.ops.aten.threshold_backward(grad, x, 0.0)
        if not math.isinf(ctx.ceiling):
            usual = usual.masked_fill(x >= ctx.ceiling, 0.0)
        chosen = ctx.pictures if len(ctx.pictures) == len(x) else ctx.pictures.all()
        silent = chosen & (torch.linalg.vector_norm(usual, math.inf, dim=tuple(range(1, x.dim()))) == 0)
        if bool(silent.any()):
            blocked = ((x <= 0) & (grad > 0)) | ((x >= ctx.ceiling) & (grad < 0))
            passed = grad.masked_fill(blocked, 0.0)
            usual = torch.where(silent.reshape(-1, *[1] * (x.dim() - 1)), passed, usual)
        return usual, None, None
