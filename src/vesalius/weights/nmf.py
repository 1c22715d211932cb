"""One-sided NMF of weights: a few groups of inputs, and the signed map with which a unit reads each group.

Weights [unit, source, row, column] ≈ Σ_k map_k [unit, row, column] × group_k [source], the groups ≥ 0, the maps of
either sign (Schubert et al. 2021, High-Low Frequency Detectors, Distill, doi 10.23915/distill.00024.005; semi-NMF,
Ding, Li & Jordan 2010). Units factored together share the groups. To factor what excites and what inhibits apart,
give the positive and the negative part of the weights in turn.

Maps are the least squares given the groups, groups are descended one at a time (HALS), from the singular vectors;
nothing is drawn. While they descend large maps are penalised: else two groups may grow alike and their maps cancel.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vesalius.errors import VesaliusError

SHRINK = 0.3
"""The penalty on the square of maps, for groups of norm 1."""


class Factors(NamedTuple):
    """Groups of unit norm, ordered by the size of their maps."""

    groups: Float[Tensor, "factor source"]
    maps: Float[Tensor, "factor unit row column"]
    explained: float
    """Share of the squared weights: 1 if the factors are all there is."""


def one_sided_nmf(
    weights: Float[Tensor, "unit source row column"], rank: int, *, steps: int = 100
) -> Factors:
    """The best few groups of inputs, and each unit's map of each.

    Raises VesaliusError for a rank below 1 or above the number of sources, and for weights that are not finite.

    >>> groups = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    >>> maps = torch.tensor([[[[2.0, 0.0, -1.0]]], [[[0.0, 1.0, 1.0]]]])
    >>> found = one_sided_nmf(torch.einsum("fs,furc->usrc", groups, maps), 2)
    >>> round(found.explained, 4)
    1.0
    """
    units, sources, rows, columns = weights.shape
    if not 1 <= rank <= sources:
        raise VesaliusError(f"{rank} factors were asked for; expected 1 to {sources}, the number of sources")
    if not weights.isfinite().all():
        raise VesaliusError("the weights hold NaN or infinite values; nothing can be factored")
    X = rearrange(weights, "unit source row column -> (unit row column) source").double()
    groups, ridge = _start(X, rank), SHRINK * torch.eye(rank, dtype=X.dtype, device=X.device)
    for _ in range(steps):
        maps = X @ groups.T @ torch.linalg.inv(groups @ groups.T + ridge)
        reading, overlap = maps.T @ X, maps.T @ maps
        for k in range(rank):
            if overlap[k, k] > 0:
                rest = reading[k] - overlap[k] @ groups + overlap[k, k] * groups[k]
                groups[k] = (rest / overlap[k, k]).clamp(min=0)
        groups = groups / groups.norm(dim=1, keepdim=True).clamp(min=1e-30)
    maps = X @ torch.linalg.pinv(groups)
    total = X.square().sum().item()
    explained = 1 - (X - maps @ groups).square().sum().item() / total if total else 1.0
    order = maps.norm(dim=0).argsort(descending=True, stable=True)
    shaped = rearrange(
        maps.T[order],
        "factor (unit row column) -> factor unit row column",
        unit=units,
        row=rows,
        column=columns,
    )
    return Factors(groups[order].to(weights), shaped.to(weights), explained)


def _start(X: Float[Tensor, "position source"], rank: int) -> Float[Tensor, "factor source"]:
    """The positive and the negative half of singular vectors, those that hold most; the rest is even.

    Inputs that are read with opposite maps so begin in different groups.
    """
    _, S, Vh = torch.linalg.svd(X, full_matrices=False)
    halves = torch.cat([Vh.clamp(min=0), -Vh.clamp(max=0)])
    held = halves.norm(dim=1) * S.repeat(2)
    start = halves[held.argsort(descending=True, stable=True)[:rank]]
    even = X.new_full((rank - len(start), X.shape[1]), 1.0)
    return torch.cat([start, even]) + 1e-3
