"""Addition modulo p by turning: the algorithm that trained networks find, in closed form.

Nanda et al. 2023, "Progress measures for grokking via mechanistic interpretability" (arXiv 2301.05217): each
number n becomes the rotations by 2πkn/p for a few key frequencies k, rotations are composed by the addition
formulas, and the answer c is read off as Σ_k cos(2πk(a + b - c)/p), which is largest at c = a + b. No
training, no attention.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vesalius.model import Model


def modular_addition(frequencies: Sequence[int] = (14, 35, 41, 42, 52), *, p: int = 113) -> Model:
    """A network that adds the numbers it has read so far modulo `p`, with exactly these frequencies.

    >>> model = modular_addition()
    >>> model(torch.tensor([[100, 20]]))[0, -1].argmax().item()
    7
    """
    return Model(ModularAddition(list(frequencies), p), name=f"modular-addition-{p}")


class ModularAddition(nn.Module):
    """`embed` holds cos and sin of every number, `turn` composes rotations, `unembed` compares them."""

    def __init__(self, frequencies: list[int], p: int):
        super().__init__()
        phase = 2 * math.pi * torch.outer(torch.arange(p), torch.tensor(frequencies)).double() / p
        rotations = torch.cat([phase.cos(), phase.sin()], 1)  # [number, cosines then sines]
        self.embed = nn.Embedding.from_pretrained(rotations.float())
        self.turn = Turn()
        self.unembed = nn.Linear(2 * len(frequencies), p, bias=False)
        self.unembed.weight = nn.Parameter(rotations.float(), requires_grad=False)

    def forward(self, input_ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos p"]:
        rotations = self.embed(input_ids)
        sums = [rotations[:, 0]]
        for place in range(1, rotations.shape[1]):
            sums.append(self.turn(sums[-1], rotations[:, place]))
        return self.unembed(torch.stack(sums, 1))


class Turn(nn.Module):
    """cos(x + y) = cos x cos y - sin x sin y, sin(x + y) = sin x cos y + cos x sin y."""

    def forward(
        self, x: Float[Tensor, "batch turn"], y: Float[Tensor, "batch turn"]
    ) -> Float[Tensor, "batch turn"]:
        (cos_x, sin_x), (cos_y, sin_y) = x.chunk(2, -1), y.chunk(2, -1)
        return torch.cat([cos_x * cos_y - sin_x * sin_y, sin_x * cos_y + cos_x * sin_y], -1)
