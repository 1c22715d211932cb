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
from collections.abc import Sequence

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


class Correlations:
    """Correlation of every unit of one side with every unit of the other, while samples of both stream by.

    Moments of batches are merged (Chan, Golub & LeVeque 1979), so memory does not grow with the samples.

    >>> a = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    >>> seen = Correlations()
    >>> for part in a.split(20):
    ...     seen.add(part, 2 * part.flip(1) + 5)
    >>> bool(torch.allclose(seen.table(), torch.corrcoef(a.T).flip(1), atol=1e-6))
    True
    """

    def __init__(self) -> None:
        self.count = 0
        self.means: list[Tensor] = []
        self.squares: list[Tensor] = []
        """Sums of squared deviations of the units of either side."""
        self.products = torch.zeros(())

    def add(self, first: Float[Tensor, "sample unit"], second: Float[Tensor, "sample other"]) -> None:
        """More samples, the same rows of both sides."""
        new = len(first)
        means = [side.mean(0) for side in (first, second)]
        centred = [side - mean for side, mean in zip((first, second), means)]
        squares, products = [side.square().sum(0) for side in centred], centred[0].T @ centred[1]
        if self.count:
            weight = self.count * new / (self.count + new)
            steps = [mean - old for mean, old in zip(means, self.means)]
            products += self.products + weight * torch.outer(*steps)
            squares = [a + b + weight * step.square() for a, b, step in zip(squares, self.squares, steps)]
            means = [old + step * new / (self.count + new) for old, step in zip(self.means, steps)]
        self.count, self.means, self.squares, self.products = self.count + new, means, squares, products

    def scale(self, side: int) -> tuple[Float[Tensor, " unit"], Float[Tensor, " unit"]]:
        """Mean and standard deviation of the units of the first side (0) or of the second (1)."""
        return self.means[side], (self.squares[side] / self.count).sqrt()

    def table(self) -> Float[Tensor, "unit other"]:
        """In -1..1; 0 with a unit that never varies."""
        norms = torch.outer(*(side.sqrt() for side in self.squares))
        return torch.where(norms > 1e-9, self.products / norms.clamp_min(1e-9), 0.0).clamp(-1, 1)


def gram(layer: Float[Tensor, "sample *axes"]) -> Float[Tensor, "sample sample"]:
    """Inner products between samples less their mean, all other axes flattened; `hsic` does not see the mean."""
    flat = layer.flatten(1)
    flat = flat - flat.mean(0)
    return (flat @ flat.T).double()


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


def canonical_correlations(layers: Sequence[Tensor], others: Sequence[Tensor]) -> tuple[Table, Table]:
    """SVCCA and PWCCA: mean canonical correlation of the leading subspaces, plain and weighted by the first's use.

    >>> a = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    >>> mixed = a @ torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    >>> [round(table.item(), 4) for table in canonical_correlations([a], [mixed])]
    [1.0, 1.0]
    """
    second = [_leading(other) for other in others]
    plain, weighted = torch.zeros(2, len(layers), len(others), dtype=torch.float64)
    for row, layer in enumerate(layers):
        basis = _leading(layer)
        units = basis.T @ _centred(layer)
        for column, other in enumerate(second):
            across = basis.T @ other
            squares, directions = torch.linalg.eigh(across @ across.T)
            kept = min(across.shape)
            correlations, directions = squares[-kept:].clamp(0, 1).sqrt(), directions[:, -kept:]
            use = (directions.T @ units).abs().sum(1)
            plain[row, column] = correlations.mean()
            weighted[row, column] = (use / use.sum().clamp_min(1e-30)) @ correlations
    return plain, weighted


def dissimilarity_correlations(layers: Sequence[Tensor], others: Sequence[Tensor]) -> Table:
    """RSA: rank correlation of dissimilarities between samples, one minus their correlation over units."""
    first, second = (torch.stack([_ranks(one) for one in side]) for side in (layers, others))
    return first @ second.T


def predictivity(layers: Sequence[Tensor], others: Sequence[Tensor], *, ridge: float = 1e-2) -> Table:
    """Mean over units of the second of the correlation with what a ridge regression on the first says, held out.

    The first half of the samples predicts the second and the other way round, so that samples of one picture should
    lie together. `ridge` is in units of the mean variance of the first's units. A unit that never varies counts 0.
    """
    half = len(others[0]) // 2
    halves = slice(0, half), slice(half, 2 * half)
    table = torch.zeros(len(layers), len(others), dtype=torch.float64)
    for train, test in (halves, halves[::-1]):
        says = [_ridge(layer[train].double(), layer[test].double(), ridge) for layer in layers]
        for column, other in enumerate(others):
            wanted, true = other[train].double(), _centred(other[test])
            wanted = wanted - wanted.mean(0)
            for row, say in enumerate(says):
                said = _centred(say @ wanted)
                norms = said.norm(dim=0) * true.norm(dim=0)
                found = torch.where(norms > 1e-12, (said * true).sum(0) / norms.clamp_min(1e-12), 0.0)
                table[row, column] += found.mean() / 2
    return table


def _ridge(
    x: Float[Tensor, "sample unit"], seen: Float[Tensor, "held unit"], ridge: float
) -> Float[Tensor, "held sample"]:
    """The matrix that takes any centred outputs of x's samples to what a ridge regression says of the held-out ones.

    Solved on the shorter side.
    """
    x, seen = x - x.mean(0), seen - x.mean(0)
    wide = x.shape[1] > len(x)
    inner = x @ x.T if wide else x.T @ x
    inner += (ridge * inner.diagonal().mean() + 1e-12) * torch.eye(len(inner), dtype=inner.dtype)
    if wide:
        return torch.linalg.solve(inner, seen @ x.T, left=False)
    return seen @ torch.linalg.solve(inner, x.T)


def _centred(layer: Tensor) -> Tensor:
    return layer.double() - layer.double().mean(0)


def _leading(layer: Float[Tensor, "sample unit"]) -> Float[Tensor, "sample direction"]:
    """Orthonormal scores of the leading principal directions."""
    centred = _centred(layer)
    wide = centred.shape[1] > len(centred)
    squares, directions = torch.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    shares = squares.clamp_min(0).flip(0).cumsum(0) / squares.clamp_min(0).sum().clamp_min(1e-30)
    kept = min(int((shares < EXPLAINED).sum()) + 1, max(1, len(layer) // PER_DIRECTION), len(squares))
    directions = directions[:, -kept:].flip(1)
    return directions if wide else centred @ directions / squares[-kept:].flip(0).clamp_min(1e-30).sqrt()


def _ranks(layer: Float[Tensor, "sample unit"]) -> Float[Tensor, " pair"]:
    """Ranks of all dissimilarities between samples, with mean 0 and length 1."""
    shifted = layer.double() - layer.double().mean(1, keepdim=True)
    unit = shifted / shifted.norm(dim=1, keepdim=True).clamp_min(1e-12)
    rows, columns = torch.triu_indices(len(layer), len(layer), 1)
    ranks = (1 - unit @ unit.T)[rows, columns].argsort().argsort().double()
    ranks = ranks - ranks.mean()
    return ranks / ranks.norm().clamp_min(1e-12)
