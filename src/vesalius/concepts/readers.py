"""Readers: the direction in a space of activations along which a concept grows, from contrast pairs.

All take activations with the concept and without, pair by pair and place by place (a place is a layer, or a head of
one), and give one unit vector a place, which points to the concept:

* difference of means, the default: it is right whenever the concept is added, whatever else varies;
* PCA as Zou et al. 2023 do it (Representation Engineering, arXiv 2310.01405): the first component of centred
  differences whose order was drawn at random, signed by the majority of pairs. It finds the largest variance, which
  need not be the concept;
* the same with the order left fixed, as some tools do: centring then deletes the very thing that was looked for. It
  is here to be shown wrong;
* logistic regression for matched pairs (ridge), cluster means (no pairs needed), and mass mean: the difference of
  means whitened by the covariance within the classes (Fisher 1936; Marks & Tegmark 2023, arXiv 2310.06824), which
  is shrunk as Ledoit & Wolf 2004 do.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vesalius.errors import VesaliusError, nearest

Acts = Float[Tensor, "pair place width"]
Directions = Float[Tensor, "place width"]
FLAGGED = 0.5
"""Below this |cosine| with the difference of means, a principal component is something else."""


def difference_of_means(positive: Acts, negative: Acts, seed: int = 0) -> Directions:
    """The mean with the concept less the mean without."""
    return (positive.double() - negative.double()).mean(0)


def cluster_means(positive: Acts, negative: Acts, seed: int = 0) -> Directions:
    """The difference of the two class means: the same as `difference_of_means` where there are pairs."""
    return positive.double().mean(0) - negative.double().mean(0)


def pca(positive: Acts, negative: Acts, seed: int = 0) -> Directions:
    """The first principal component of the differences, their order drawn at random (Zou et al. 2023)."""
    swapped = torch.rand(len(positive), generator=torch.Generator().manual_seed(seed)) < 0.5
    order = torch.where(swapped, -1.0, 1.0).to(positive)[:, None, None]
    return _signed(_first_component(order * (positive - negative)), positive, negative)


def pca_fixed_order(positive: Acts, negative: Acts, seed: int = 0) -> Directions:
    """The first principal component of centred differences in fixed order: the trap, kept to be flagged."""
    return _signed(_first_component(positive - negative), positive, negative)


def logistic(positive: Acts, negative: Acts, seed: int = 0) -> Directions:
    """Logistic regression for matched pairs with a ridge, by Newton's method in the span of the differences."""
    basis, rows = _spanned((positive - negative).transpose(0, 1).double())
    scale = rows.square().sum(-1).mean(-1)[:, None, None]  # so that the ridge means the same at every layer
    rows = rows / scale.sqrt()
    eye = torch.eye(rows.shape[-1], dtype=rows.dtype) * 0.1 * rows.shape[1] / rows.shape[-1]
    w = torch.zeros(len(rows), rows.shape[-1], 1, dtype=rows.dtype)
    for _ in range(8):
        p = torch.sigmoid(rows @ w)
        gradient = rows.mT @ (p - 1) + eye @ w
        hessian = rows.mT @ (p * (1 - p) * rows) + eye
        w = w - torch.linalg.solve(hessian, gradient)
    return (basis @ w)[..., 0]


def mass_mean(positive: Acts, negative: Acts, seed: int = 0) -> Directions:
    """The difference of means whitened by the shrunk covariance within classes: Fisher's discriminant."""
    both = torch.cat([positive, negative]).transpose(0, 1).double()
    difference = difference_of_means(positive, negative)
    basis, _ = _spanned(both - both.mean(1, keepdim=True))
    within = torch.cat([side.double() - side.double().mean(0) for side in (positive, negative)]).transpose(
        0, 1
    )
    rows, n, width = within @ basis, within.shape[1], within.shape[2]
    covariance = rows.mT @ rows / n
    mean = covariance.diagonal(dim1=-2, dim2=-1).sum(-1) / width
    spread = covariance.square().sum((-2, -1))
    distance = spread - width * mean**2
    error = (rows.square().sum(-1).square().sum(-1) / n - spread) / n
    shrink = (error / distance.clamp(min=1e-30)).clamp(1e-6, 1)[:, None, None]
    eye = torch.eye(rows.shape[-1], dtype=rows.dtype)
    shrunk = (1 - shrink) * covariance + shrink * mean.clamp(min=1e-30)[:, None, None] * eye
    return (basis @ torch.linalg.solve(shrunk, basis.mT @ difference[..., None]))[..., 0]


def random(positive: Acts, negative: Acts, seed: int = 0) -> Directions:
    """A direction drawn at random, signed by the majority of pairs: what every other reader has to beat."""
    generator = torch.Generator().manual_seed(7_919 + 104_729 * seed)  # not the stream that made the weights
    drawn = torch.randn(positive.shape[1:], generator=generator, dtype=torch.float64)
    return _signed(drawn, positive, negative)


READERS: dict[str, Callable[[Acts, Acts, int], Directions]] = {
    reader.__name__: reader
    for reader in (difference_of_means, pca, pca_fixed_order, logistic, cluster_means, mass_mean, random)
}


def read_directions(positive: Acts, negative: Acts, *, reader: str, seed: int = 0) -> Directions:
    """The unit vector at every place by a reader's name; a place where the classes do not differ gets zeros.

    Raises VesaliusError for an unknown reader, sides that do not pair, or fewer than two pairs.
    """
    if reader not in READERS:
        raise VesaliusError(
            f"there is no reader '{reader}'; expected one of {', '.join(READERS)}{nearest(reader, READERS)}"
        )
    if positive.shape != negative.shape or len(positive) < 2:
        raise VesaliusError(
            f"the pairs do not align: {tuple(positive.shape)} positive and {tuple(negative.shape)} negative "
            "activations; expected as many of each, and at least 2"
        )
    return F.normalize(READERS[reader](positive, negative, seed), dim=-1).float()


def agreement(first: Directions, second: Directions) -> Float[Tensor, " place"]:
    """The cosine of two sets of directions: 1 the same, 0 nothing in common."""
    return F.cosine_similarity(first, second, dim=-1)


def held_out_margins(
    positive: Acts, negative: Acts, groups: Sequence[str], *, reader: str, folds: int = 5, seed: int = 0
) -> Float[Tensor, "pair place"]:
    """How much further along the direction the text with the concept lies, fitted on the other groups.

    Positive is right. A group is never split, so that what its pairs share cannot help.
    """
    fold = fold_of(groups, folds=folds, seed=seed)
    margins = torch.zeros(positive.shape[:2])
    for number in range(int(fold.max()) + 1):
        test = fold == number
        found = read_directions(positive[~test], negative[~test], reader=reader, seed=seed + number)
        margins[test] = torch.einsum("npd,pd->np", (positive[test] - negative[test]).float(), found)
    return margins


def fold_of(groups: Sequence[str], *, folds: int = 5, seed: int = 0) -> Int[Tensor, " pair"]:
    """A fold for every pair, the same for all of a group, as equal in groups as can be."""
    names = sorted(set(groups))
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    fold = {names[which]: rank % min(folds, len(names)) for rank, which in enumerate(order)}
    return torch.tensor([fold[group] for group in groups])


def flipped_groups(groups: Sequence[str], *, seed: int) -> Bool[Tensor, " pair"]:
    """Which pairs have their labels exchanged when labels are shuffled: half of the groups."""
    return fold_of(groups, folds=2, seed=seed) == 0


def exchanged(positive: Acts, negative: Acts, flip: Bool[Tensor, " pair"]) -> tuple[Acts, Acts]:
    """The same activations with some pairs turned round."""
    where = flip[:, None, None]
    return torch.where(where, negative, positive), torch.where(where, positive, negative)


def right_share(margins: Float[Tensor, "pair place"]) -> Float[Tensor, "pair place"]:
    """1 where a pair is told the right way round, 0 where the wrong, a half where there is no difference."""
    return (margins.sign() + 1) / 2


def _signed(found: Directions, positive: Acts, negative: Acts) -> Directions:
    """Pointing to the side on which most positive texts lie; a tie leaves it as the reference does, positive."""
    ahead = torch.einsum("npd,pd->np", (positive - negative).to(found), found).sign().sum(0)
    return torch.where(ahead < 0, -1.0, 1.0)[:, None] * found


def _first_component(differences: Acts) -> Directions:
    """The direction of largest variance after centring, from the smaller of the two Gram matrices."""
    rows = (differences - differences.mean(0)).transpose(0, 1).double()
    if rows.shape[1] > rows.shape[2]:
        return torch.linalg.eigh(rows.mT @ rows).eigenvectors[..., -1]
    return (rows.mT @ torch.linalg.eigh(rows @ rows.mT).eigenvectors[..., -1:])[..., 0]


def _spanned(
    rows: Float[Tensor, "place row width"],
) -> tuple[Float[Tensor, "place width rank"], Float[Tensor, "place row rank"]]:
    """An orthonormal basis of what the rows span, and the rows in it."""
    basis = torch.linalg.qr(rows.mT).Q if rows.shape[1] < rows.shape[2] else _identity_like(rows)
    return basis, rows @ basis


def _identity_like(rows: Float[Tensor, "place row width"]) -> Float[Tensor, "place width width"]:
    return torch.eye(rows.shape[-1], dtype=rows.dtype).expand(len(rows), -1, -1)
