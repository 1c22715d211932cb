"""How alike two representations of the same inputs are: five measures, for every pair out of two lists of layers.

| measure | 1 means | invariant to | source |
|---|---|---|---|
| linear CKA | equal up to rotation and scale | rotation, scale | Kornblith et al. 2019, arXiv 1905.00414 |
| SVCCA | the same leading subspace | any invertible map of it | Raghu et al. 2017, arXiv 1706.05806 |
| PWCCA | the same, directions weighted by use | any invertible map | Morcos et al. 2018, arXiv 1806.05759 |
| RSA | the same order of dissimilarities between samples | rotation, scale | Kriegeskorte et al. 2008 |
| predictivity | the second is a linear function of the first | invertible maps of the first | Yamins et al. 2014 |

0 means unrelated for CKA (unbiased, so it may be a little below), RSA and predictivity. The two CCAs of unrelated
representations are *not* 0, and grow with units per sample: read them beside their control. A representation is a
matrix `[sample, unit]`; a table has a row for each of the first list and a column for each of the second.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from vesalius.errors import VesaliusError

EXPLAINED = 0.99
"""Share of the variance that SVCCA and PWCCA keep."""
PER_DIRECTION = 5
"""Samples they need for each direction that they keep; what goes beyond is dropped."""

Table = Float[Tensor, "layer other"]


def cells(layer: Float[Tensor, "image *axes"], grid: int) -> Float[Tensor, "image cell unit"]:
    """Averages over a grid of cells: of maps, and of tokens over the square of patches that follows the first token.

    What has no places counts as the same everywhere.
    """
    if layer.dim() == 2:
        layer = layer[:, :, None, None]
    if layer.dim() == 3:
        side = math.isqrt(layer.shape[1] - 1)
        patches = layer[:, 1:] if side and side * side == layer.shape[1] - 1 else layer.mean(1, keepdim=True)
        layer = patches.transpose(1, 2).unflatten(2, (math.isqrt(patches.shape[1]), -1))
    return adaptive_avg_pool2d(layer, grid).flatten(2).transpose(1, 2)


def gram(layer: Float[Tensor, "sample *axes"]) -> Float[Tensor, "sample sample"]:
    """Inner products between samples, all other axes flattened."""
    flat = layer.flatten(1).double()
    return flat @ flat.T


def hsic(grams: Float[Tensor, "layer sample sample"], others: Float[Tensor, "other sample sample"]) -> Table:
    """Unbiased estimate of how dependent kernels are, Hilbert–Schmidt (Song et al. 2012, JMLR 13, 1393).

    Raises VesaliusError for fewer than four samples.
    """
    n = grams.shape[-1]
    if n < 4:
        raise VesaliusError(f"similarity was given {n} samples; the unbiased estimate needs four or more")
    k, l = (one - torch.diag_embed(one.diagonal(dim1=1, dim2=2)) for one in (grams, others))
    trace = torch.einsum("aij,bij->ab", k, l)
    means = k.sum((1, 2))[:, None] * l.sum((1, 2)) / ((n - 1) * (n - 2))
    crossed = 2 * (k.sum(1) @ l.sum(1).T) / (n - 2)
    return (trace + means - crossed) / (n * (n - 3))


def linear_cka(both: Table, first: Float[Tensor, " layer"], second: Float[Tensor, " other"]) -> Table:
    """Linear centred kernel alignment from HSIC of each pair and of each layer with itself.

    Sums over minibatches give the minibatch estimate (Nguyen et al. 2020, arXiv 2010.15327).

    >>> a = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    >>> turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1))).Q
    >>> grams = torch.stack([gram(a), gram(3 * a @ turn)])
    >>> table = hsic(grams, grams)
    >>> round(linear_cka(table, table.diagonal(), table.diagonal())[0, 1].item(), 6)
    1.0
    """
    return both / (first.clamp_min(0)[:, None] * second.clamp_min(0)).sqrt().clamp_min(1e-30)


def canonical_correlations(
    layers: list[Tensor], others: list[Tensor]
) -> tuple[Float[Tensor, "layer other"], Float[Tensor, "layer other"]]:
    """SVCCA and PWCCA: mean canonical correlation of the leading subspaces, plain and weighted by the first's use.

    >>> a = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    >>> mixed = a @ torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    >>> [round(table.item(), 4) for table in canonical_correlations([a], [mixed])]
    [1.0, 1.0]
    """
    first, second = [_leading(layer) for layer in layers], [_leading(other) for other in others]
    plain, weighted = torch.zeros(2, len(first), len(second), dtype=torch.float64)
    for row, (basis, layer) in enumerate(zip(first, layers)):
        units = basis.T @ _centred(layer)
        for column, other in enumerate(second):
            directions, correlations, _ = torch.linalg.svd(basis.T @ other, full_matrices=False)
            use = (directions.T @ units).abs().sum(1)
            plain[row, column] = correlations.clamp(0, 1).mean()
            weighted[row, column] = (use / use.sum().clamp_min(1e-30)) @ correlations.clamp(0, 1)
    return plain, weighted


def dissimilarity_correlations(layers: list[Tensor], others: list[Tensor]) -> Table:
    """RSA: rank correlation of dissimilarities between samples, one minus their correlation over units."""
    first, second = (torch.stack([_ranks(one) for one in side]) for side in (layers, others))
    return first @ second.T


def predictivity(layers: list[Tensor], others: list[Tensor], *, ridge: float = 1e-2) -> Table:
    """Mean over units of the second of the correlation with what a ridge regression on the first says, held out.

    The first half of the samples predicts the second and the other way round, so that samples of one picture should
    lie together. `ridge` is in units of the mean variance of the first's units. A unit that never varies counts 0.
    """
    widths, wanted = [other.shape[1] for other in others], torch.cat(others, 1).double()
    table = torch.zeros(len(layers), len(others), dtype=torch.float64)
    half = len(wanted) // 2
    halves = slice(0, half), slice(half, 2 * half)
    for row, layer in enumerate(layers):
        for train, test in (halves, halves[::-1]):
            said = _ridge(layer[train].double(), wanted[train], layer[test].double(), ridge)
            said, true = said - said.mean(0), wanted[test] - wanted[test].mean(0)
            norms = said.norm(dim=0) * true.norm(dim=0)
            found = torch.where(norms > 1e-12, (said * true).sum(0) / norms.clamp_min(1e-12), 0.0)
            table[row] += torch.stack([part.mean() for part in found.split(widths)]) / 2
    return table


def _ridge(x: Tensor, y: Tensor, seen: Tensor, ridge: float) -> Tensor:
    """What a ridge regression of y on x says of what was seen; solved on the shorter side."""
    centre, x, seen = y.mean(0), x - x.mean(0), seen - x.mean(0)
    wide = x.shape[1] > len(x)
    inner = x @ x.T if wide else x.T @ x
    inner += (ridge * inner.diagonal().mean() + 1e-12) * torch.eye(len(inner), dtype=inner.dtype)
    if wide:
        return centre + (seen @ x.T) @ torch.linalg.solve(inner, y - centre)
    return centre + seen @ torch.linalg.solve(inner, x.T @ (y - centre))


def _centred(layer: Tensor) -> Tensor:
    return layer.double() - layer.double().mean(0)


def _leading(layer: Float[Tensor, "sample unit"]) -> Float[Tensor, "sample direction"]:
    """Orthonormal scores of the leading principal directions."""
    u, s, _ = torch.linalg.svd(_centred(layer), full_matrices=False)
    shares = s.square().cumsum(0) / s.square().sum().clamp_min(1e-30)
    kept = min(int((shares < EXPLAINED).sum()) + 1, max(1, len(layer) // PER_DIRECTION))
    return u[:, :kept]


def _ranks(layer: Float[Tensor, "sample unit"]) -> Float[Tensor, " pair"]:
    """Ranks of all dissimilarities between samples, with mean 0 and length 1."""
    shifted = layer.double() - layer.double().mean(1, keepdim=True)
    unit = shifted / shifted.norm(dim=1, keepdim=True).clamp_min(1e-12)
    rows, columns = torch.triu_indices(len(layer), len(layer), 1)
    ranks = (1 - unit @ unit.T)[rows, columns].argsort().argsort().double()
    ranks = ranks - ranks.mean()
    return ranks / ranks.norm().clamp_min(1e-12)
