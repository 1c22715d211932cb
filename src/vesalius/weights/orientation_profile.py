"""Weights between oriented units over the difference of their orientations: what is left of them without positions.

Published for the handwritten curve circuit of Cammarata et al. 2021 (Curve Circuits, distill.pub/2020/circuits): like
excites like, opposites inhibit.
"""

import torch
from jaxtyping import Float
from torch import Tensor

STEP = 15.0
"""Degrees between two differences."""


def orientation_profile(
    sums: Float[Tensor, "target source"], targets: Float[Tensor, " target"], sources: Float[Tensor, " source"]
) -> Float[Tensor, " difference"]:
    """The mean weight of the pairs that differ by 0, 15 … 180 degrees, to 7.5; NaN where there are none.

    >>> orientation_profile(torch.tensor([[1.0, -1.0]]), torch.tensor([0.0]), torch.tensor([350.0, 185.0]))[[1, 12]]
    tensor([ 1., -1.])
    """
    apart = ((sources - targets[:, None] + 180) % 360 - 180).abs()
    kind = (apart / STEP).round().long().flatten()
    count = torch.bincount(kind, minlength=13)
    return torch.zeros(13).index_add_(0, kind, sums.flatten()) / count


def likeness(first: Float[Tensor, " difference"], second: Float[Tensor, " difference"]) -> float:
    """The correlation of two profiles over the differences that both have; 0 if one is flat."""
    known = first.isfinite() & second.isfinite()
    return torch.corrcoef(torch.stack([first[known], second[known]]))[0, 1].nan_to_num(0.0).item()
