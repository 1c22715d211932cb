"""How activations are kept: in 32, 16 or 8 bits, and what comes back."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius.errors import VesaliusError, nearest

Precision = Literal["float32", "float16", "bfloat16", "int8"]
STORED = {
    "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8,
}  # fmt: skip
SCALE = "scale of "
"""What the column of the scales is called, before the name of its site."""
LEVELS = 127
LARGEST = 65_504.0
"""Beyond it there is no number in half precision."""
RULES = {
    "float32": "as computed",
    "float16": "rounded to nearest even; a value beyond 65,504 is refused",
    "bfloat16": "rounded to nearest even",
    "int8": "code = round(value / scale), to even; scale = largest magnitude of the row / 127 in float32; "
    "value = code * scale",
}


def named(precision: str) -> Precision:
    """The precision of that name; raises VesaliusError for another word."""
    for known in get_args(Precision):
        if precision == known:
            return known
    raise VesaliusError(
        f"dtype '{precision}' was asked for; expected {', '.join(STORED)}{nearest(precision, STORED)}"
    )


def kept(rows: Float[Tensor, "row width"], precision: Precision) -> tuple[Tensor, Tensor | None]:
    """What is stored of some rows: their numbers, and with 8 bits the scale of each row.

    >>> numbers, scales = kept(torch.tensor([[1.0, -2.0, 0.5]]), "int8")
    >>> numbers.tolist(), value_of(numbers, scales)
    ([[64, -127, 32]], tensor([[ 1.0079, -2.0000,  0.5039]]))
    """
    if precision != "int8":
        return rows.to(STORED[precision]), None
    scales = rows.float().abs().amax(1) / LEVELS
    return (rows.float() / scales.clamp(min=1e-38)[:, None]).round().to(torch.int8), scales


def value_of(numbers: Tensor, scales: Float[Tensor, " row"] | None) -> Float[Tensor, "row width"]:
    """The values that stored rows stand for, in single precision."""
    return numbers.float() if scales is None else numbers.float() * scales[:, None]
