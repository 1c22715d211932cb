"""What signed maps of weights say in one number: how few inputs hold them, how smooth they are, which half is up."""

import torch
from jaxtyping import Float
from torch import Tensor


def mass(weights: Float[Tensor, "*batch row column"]) -> Float[Tensor, "*batch"]:
    """The sum of absolute weights of each map."""
    return weights.abs().sum((-2, -1))


def top_share(weights: Float[Tensor, "target source row column"], top: int) -> Float[Tensor, " target"]:
    """Share of a target's mass in its `top` heaviest inputs: top / sources if all weigh alike, 1 if they are all.

    >>> top_share(torch.tensor([[[[3.0]], [[-1.0]], [[0.0]]]]), 1)
    tensor([0.7500])
    """
    masses = mass(weights)
    return masses.topk(min(top, masses.shape[1])).values.sum(1) / masses.sum(1).clamp(min=1e-30)


def smoothness(weights: Float[Tensor, "target source row column"]) -> Float[Tensor, " target"]:
    """Product of weights side by side, over their square: 0 for maps in disorder, 1 if constant; 0 for one position.

    Moran 1950 (autocorrelation), about 0 and not about the mean, over all maps of a target together.
    """
    pairs = [weights[..., 1:, :] * weights[..., :-1, :], weights[..., 1:] * weights[..., :-1]]
    number = sum(pair.shape[-2] * pair.shape[-1] for pair in pairs)
    if number == 0:
        return weights.new_zeros(len(weights))
    beside = sum(pair.sum((1, 2, 3)) for pair in pairs) / number
    return beside / weights.square().sum(1).mean((1, 2)).clamp(min=1e-30)


def shuffled(weights: Float[Tensor, "target source row column"], generator: torch.Generator) -> Tensor:
    """The same weights, the positions of each map in an order of its own."""
    order = torch.rand(weights.shape, generator=generator).flatten(2).argsort(2).to(weights.device)
    return weights.flatten(2).gather(2, order).unflatten(2, weights.shape[2:])


def upper_minus_lower(maps: Float[Tensor, "*batch row column"]) -> Float[Tensor, "*batch"]:
    """Weight in the upper half less that in the lower, over the mass: 1 all above and positive, -1 all below.

    Also -1 if all is above and negative. The middle row of an odd number counts to neither half.
    """
    half = maps.shape[-2] // 2
    difference = maps[..., :half, :].sum((-2, -1)) - maps[..., maps.shape[-2] - half :, :].sum((-2, -1))
    return difference / mass(maps).clamp(min=1e-30)
