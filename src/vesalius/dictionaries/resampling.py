"""Dead latents set anew on inputs that are reconstructed badly (Bricken et al. 2023, Neuron Resampling).

1. At the given steps, and at no other, take the latents that were not active in the previous `dead_after` steps.
2. Take the loss of `scored` inputs; draw one input for each dead latent with probability proportional to loss².
3. The latent's dictionary vector becomes the input at unit length; its encoder vector the same at 0.2 times the mean
   length of the encoder vectors of latents that are alive; its encoder bias 0.
4. Adam's moments are set to 0 for exactly these entries.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from vesalius.dictionaries.weights import Weights

SHARE = 0.2
"""Of the mean length of the encoder vectors that are alive."""


@dataclass(frozen=True)
class Resampling:
    """When latents are set anew, and on how many inputs the loss is taken."""

    at: tuple[int, ...]
    dead_after: int
    scored: int
    loss: Callable[[Any], Float[Tensor, " row"]]
    """The loss of each row of a pass."""


def drawn(
    losses: Float[Tensor, " input"], count: int, *, generator: torch.Generator
) -> Int[Tensor, " count"]:
    """Inputs with probability proportional to loss², none twice; fewer if fewer have any loss."""
    weights = losses.double().square()
    count = min(count, int((weights > 0).sum()))
    return (
        torch.multinomial(weights, count, generator=generator)
        if count
        else losses.new_zeros(0, dtype=torch.long)
    )


@torch.no_grad()
def resample(
    weights: Weights,
    optimiser: torch.optim.Optimizer,
    *,
    dead: Int[Tensor, " dead"],
    read: Float[Tensor, "dead source"],
    written: Float[Tensor, "dead target"],
) -> None:
    """Set the dead latents anew on inputs, as they are read and as they are to be reconstructed."""
    lengths = weights.encoder.norm(dim=1)
    alive = torch.ones_like(lengths, dtype=torch.bool).index_fill_(0, dead, False)
    length = SHARE * (lengths[alive].mean() if alive.any() else lengths.new_ones(()))
    weights.encoder[dead] = length * normalize(read)
    weights.decoder[dead] = normalize(written)
    weights.b_enc[dead] = 0
    for matrix, mask in weights.masked():
        matrix.mul_(mask)
    for parameter in (weights.encoder, weights.decoder, weights.b_enc):
        for moment in ("exp_avg", "exp_avg_sq"):
            if parameter in optimiser.state:
                optimiser.state[parameter][moment][dead] = 0
