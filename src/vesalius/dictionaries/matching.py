"""How well the vectors of a dictionary match known directions, against what random vectors reach."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize


@dataclass(frozen=True, eq=False)
class Matching:
    """One latent for each direction, the assignment of largest summed |cosine|."""

    latent: Int[Tensor, " pair"]
    direction: Int[Tensor, " pair"]
    similarity: Float[Tensor, " pair"]
    """|cosine| of each pair."""
    random: float
    """What as many random vectors reach on average."""

    @property
    def mcc(self) -> float:
        """Mean correlation coefficient: 1 where every direction has been found; compare it with `random`."""
        return float(self.similarity.mean())


def matching(
    decoder: Float[Tensor, "latent width"], directions: Float[Tensor, "direction width"], *, seed: int = 0
) -> Matching:
    """The latents assigned to known directions (Hungarian method), as in SAE benchmarks (arXiv 2505.20254).

    >>> found = matching(-torch.eye(8).flip(0), torch.eye(8))
    >>> found.mcc, found.latent.tolist(), found.random < 0.8
    (1.0, [0, 1, 2, 3, 4, 5, 6, 7], True)
    """
    latent, direction, similarity = _assigned(decoder, directions)
    generator = torch.Generator().manual_seed(seed + 271_828_182)
    random = torch.randn(decoder.shape, generator=generator).to(directions)
    return Matching(latent, direction, similarity, float(_assigned(random, directions)[2].mean()))


def _assigned(decoder: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from scipy.optimize import linear_sum_assignment

    cosines = (normalize(decoder.float()) @ normalize(directions.float()).T).abs()
    latent, direction = (
        torch.as_tensor(index) for index in linear_sum_assignment(cosines.numpy(), maximize=True)
    )
    return latent, direction, cosines[latent, direction]
