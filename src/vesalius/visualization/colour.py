"""Colour: from independent channels to the correlated ones of photographs, and back.

Pictures are optimised in channels that do not correlate over natural images, so that a step costs the same in every
colour (Olah, Mordvintsev & Schubert 2017, distill.pub/2017/feature-visualization). A matrix `[colour, channel]`
is a square root of the colours' covariance, divided by the length of its longest column; the default is that of
ImageNet as published with Lucid, and `measured` finds it for any other set of pictures of any number of channels.
"""

from collections.abc import Iterable

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from vesalius.errors import VesaliusError

IMAGENET = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
"""Square root of the covariance of ImageNet's colours, before it is normalised; its columns are light, blue–yellow
and green–magenta."""


def usual(channels: int) -> Float[Tensor, "colour channel"]:
    """ImageNet's matrix for three channels; for any other number the identity, which assumes nothing.

    >>> usual(3).norm(dim=0)
    tensor([1.0000, 0.2755, 0.1334])
    >>> usual(1)
    tensor([[1.]])
    """
    return _normalised(torch.tensor(IMAGENET)) if channels == 3 else torch.eye(channels)


def measured(
    pictures: Iterable[Float[Tensor, "_ channel height width"]],
) -> Float[Tensor, "colour channel"]:
    """The matrix of a set of pictures, given in batches: eigenvectors of their colours' covariance, by sd.

    Raises VesaliusError if there is no picture, or none has any contrast.
    """
    count, total, square = 0, torch.zeros(()), torch.zeros(())
    for batch in pictures:
        colours = rearrange(batch.double(), "batch channel height width -> channel (batch height width)")
        count += colours.shape[1]
        total = total + colours.sum(1)
        square = square + colours @ colours.T
    if count == 0:
        raise VesaliusError("no pictures were given; expected at least one to measure colours from")
    mean = total / count
    variances, axes = torch.linalg.eigh(square / count - torch.outer(mean, mean))
    if variances[-1] <= 1e-10:
        raise VesaliusError("the pictures are of one single colour; expected some contrast")
    root = axes.flip(1) * variances.flip(0).clamp_min(0).sqrt()
    return _normalised((root * torch.where(root.sum(0) < 0, -1.0, 1.0)).float())  # signs are arbitrary


def recorrelate(
    picture: Float[Tensor, "*batch channel height width"], matrix: Float[Tensor, "colour channel"]
) -> Float[Tensor, "*batch colour height width"]:
    """Independent channels to colours."""
    return einsum(picture, matrix.to(picture), "... channel y x, colour channel -> ... colour y x")


def decorrelate(
    picture: Float[Tensor, "*batch colour height width"], matrix: Float[Tensor, "colour channel"]
) -> Float[Tensor, "*batch channel height width"]:
    """Colours to independent channels: the inverse of `recorrelate`."""
    return recorrelate(picture, torch.linalg.pinv(matrix))


def _normalised(matrix: Float[Tensor, "colour channel"]) -> Float[Tensor, "colour channel"]:
    return matrix / matrix.norm(dim=0).max()
