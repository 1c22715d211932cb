"""Makers of edits: each returns a pure function `Tensor -> Tensor` for `vs.intervene`.

Ablate with `zero`, `mean` or `resample` (they answer different questions; say which was used), patch with `patch`,
steer with `add`. Every edit leaves its input alone and keeps shape, dtype and device.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius.access import Edit
from vesalius.errors import VesaliusError


def zero() -> Edit:
    """Ablate to zero.

    >>> zero()(torch.ones(2)).tolist()
    [0.0, 0.0]
    """
    return torch.zeros_like


def mean(reference: Float[Tensor, "..."] | None = None) -> Edit:
    """Ablate to the mean over batch and positions of `reference`, or of the value itself if none is given.

    The mean keeps every axis but the first (batch) and the position axis, which is the one before the last.
    """

    def edit(value: Tensor) -> Tensor:
        source = value if reference is None else reference.to(value)
        axes = (0, -2) if source.dim() > 2 else (0,)
        return source.mean(axes, keepdim=True).expand_as(value).clone()

    return edit


def resample(seed: int = 0) -> Edit:
    """Ablate by exchange: every example gets another's value (a cyclic shift of the batch by a random amount)."""

    def edit(value: Tensor) -> Tensor:
        if value.shape[0] < 2:
            raise VesaliusError(
                f"resample exchanges the values of a batch's examples; expected 2 or more, got {value.shape[0]}"
            )
        generator = torch.Generator().manual_seed(seed)
        shift = int(torch.randint(1, value.shape[0], (1,), generator=generator))
        return value.roll(shift, 0)

    return edit


def set_to(constant: Tensor | float) -> Edit:
    """Replace by a constant that broadcasts to the value's shape."""
    return lambda value: torch.as_tensor(constant).to(value).expand_as(value).clone()


def patch(source: Float[Tensor, "..."]) -> Edit:
    """Replace by a value recorded elsewhere (clean → corrupted), of exactly the same shape."""

    def edit(value: Tensor) -> Tensor:
        if source.shape != value.shape:
            raise VesaliusError(
                f"patch was given a value of shape {tuple(source.shape)}; expected {tuple(value.shape)}"
            )
        return source.to(value)

    return edit


def freeze(value: Float[Tensor, "..."]) -> Edit:
    """Hold at a recorded value whatever flows in: `patch`, by the name used for patterns and norm scales."""
    return patch(value)


def add(vector: Float[Tensor, "..."], scale: float = 1.0) -> Edit:
    """Steer: add `scale` times a vector that broadcasts to the value's shape."""
    return lambda value: value + scale * vector.to(value)


def project_out(direction: Float[Tensor, "d"]) -> Edit:
    """Remove the component along a direction of the last axis.

    >>> project_out(torch.tensor([0.0, 2.0]))(torch.tensor([[3.0, 4.0]])).tolist()
    [[3.0, 0.0]]
    """

    def edit(value: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(direction.to(value), dim=0)
        return value - (value @ unit)[..., None] * unit

    return edit


def clamp(low: float | None = None, high: float | None = None) -> Edit:
    """Hold every entry between `low` and `high`."""
    return lambda value: value.clamp(low, high)


def at(positions: int | Sequence[int] | slice, edit: Edit) -> Edit:
    """Apply an edit at some token positions only; positions are the axis before the last (the last of a 2-D value)."""

    def apply(value: Tensor) -> Tensor:
        axis = value.dim() - 2 if value.dim() > 2 else value.dim() - 1
        where: int | slice | list[int] = positions if isinstance(positions, int | slice) else list(positions)
        index = (*[slice(None)] * axis, slice(where, where + 1 or None) if isinstance(where, int) else where)
        part = edit(value[index])
        result = value.clone()
        result[index] = part
        return result

    return apply
