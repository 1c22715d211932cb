"""The middle of rows that far ones do not draw away from the others."""

from jaxtyping import Float
from torch import Tensor


def geometric_median(
    rows: Float[Tensor, "row width"], *, iterations: int = 100, tolerance: float = 1e-6
) -> Float[Tensor, " width"]:
    """The point whose summed distance to all rows is least (Weiszfeld 1937).

    >>> import torch
    >>> geometric_median(torch.tensor([[0.0, 0.0], [0.0, 0.0], [9.0, 3.0]])).round(decimals=6).tolist()
    [0.0, 0.0]
    """
    middle = rows.mean(0)
    for _ in range(iterations):
        weights = 1 / (rows - middle).norm(dim=1).clamp(min=1e-9)
        moved = (weights[:, None] * rows).sum(0) / weights.sum()
        if (moved - middle).norm() <= tolerance * middle.norm().clamp(min=1e-9):
            return moved
        middle = moved
    return middle
