"""How latents go together with other units over a stream: correlations, and cosines where one of two fires.

Codes are sparse, so the sums of products that all these need take one gathering of the few active rows for each
latent (an embedding bag over the codes' transpose) and never a dense copy of the codes.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius.dictionaries.codes import Codes


class CoMoments:
    """Pearson correlations of every latent with every unit of something else that was seen at the same rows.

    >>> codes, other = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[1.0], [0.0], [-1.0]])
    >>> pairs = CoMoments(1, 1)
    >>> pairs.add(Codes.of(codes), other)
    >>> pairs.correlations().tolist()
    [[-1.0]]
    """

    def __init__(self, latents: int, units: int) -> None:
        self.rows = 0
        self.counts = torch.zeros(latents, dtype=torch.long)
        """In how many rows each latent was not 0."""
        self.products = torch.zeros(latents, units)
        """Sums over rows of code times shifted value."""
        self.sums = torch.zeros(2, latents, dtype=torch.float64)
        """Of codes, and of their squares."""
        self.other_sums = torch.zeros(2, units, dtype=torch.float64)
        self.shift: Tensor | None = None
        """About the mean of the other units, so that a large one costs no precision."""

    def add(self, codes: Codes, other: Float[Tensor, "row unit"]) -> None:
        other = other.float()
        self.shift = other.mean(0) if self.shift is None else self.shift
        other = other - self.shift
        self.rows += len(codes)
        self.counts += codes.latents.bincount(minlength=codes.width)
        self.products += gathered(codes, other)
        for number, power in enumerate((1, 2)):
            self.sums[number].index_add_(0, codes.latents, codes.values.double() ** power)
            self.other_sums[number] += (other.double() ** power).sum(0)

    def correlations(self) -> Float[Tensor, "latent unit"]:
        """From −1 to 1; 0 of what never varied."""
        mean, other_mean = self.sums[0] / self.rows, self.other_sums[0] / self.rows
        sd = (self.sums[1] / self.rows - mean**2).clamp(min=0).sqrt()
        other_sd = (self.other_sums[1] / self.rows - other_mean**2).clamp(min=0).sqrt()
        spread = (sd[:, None] * other_sd).float()
        covariance = self.products / self.rows - (mean[:, None] * other_mean).float()
        return torch.where(spread > 0, covariance / spread, 0).clamp(-1, 1)


class CoFiring:
    """Cosines of latents of one dictionary with those of another over the rows where one of the two fires.

    Of a latent a and a latent b, in the rows where a fires Σ f_a f_b / (|f_a| |f_b|), the same in the rows where b
    fires, and the larger of the two (Bricken et al. 2023, transformer-circuits.pub/2023/monosemantic-features).
    """

    def __init__(self, latents: int, others: int) -> None:
        self.products = torch.zeros(latents, others)
        self.other_where = torch.zeros(latents, others)
        """Sums of b² where a fires."""
        self.where = torch.zeros(others, latents)
        """Sums of a² where b fires."""
        self.squares = torch.zeros(latents, dtype=torch.float64)
        self.other_squares = torch.zeros(others, dtype=torch.float64)

    def add(self, codes: Codes, others: Codes) -> None:
        dense = others.dense()
        self.products += gathered(codes, dense)
        self.other_where += gathered(_fires(codes), dense.square())
        self.where += gathered(_fires(others), codes.dense().square())
        self.squares.index_add_(0, codes.latents, codes.values.double() ** 2)
        self.other_squares.index_add_(0, others.latents, others.values.double() ** 2)

    def cosines(self) -> Float[Tensor, "latent other"]:
        """From 0 to 1; 0 of what never fired."""
        first = self.squares.float()[:, None] * self.other_where
        second = self.other_squares.float() * self.where.T
        smaller = torch.where((first > 0) & (second > 0), torch.minimum(first, second), 0)
        return torch.where(smaller > 0, self.products / smaller.sqrt(), 0).clamp(0, 1)


def gathered(codes: Codes, other: Float[Tensor, "row unit"]) -> Float[Tensor, "latent unit"]:
    """For each latent the sum over rows of code times the row."""
    order = codes.latents.argsort(stable=True)
    counts = codes.latents.bincount(minlength=codes.width)
    if not len(order):
        return other.new_zeros(codes.width, other.shape[1])
    return torch.nn.functional.embedding_bag(
        codes.rows[order],
        other,
        counts.cumsum(0) - counts,
        mode="sum",
        per_sample_weights=codes.values[order].to(other),
    )


def _fires(codes: Codes) -> Codes:
    return Codes(codes.starts, codes.latents, torch.ones_like(codes.values), codes.width)
