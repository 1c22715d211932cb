"""Which pixels a unit's value hangs on, at one place of each picture: the size of the gradient (Simonyan et al. 2013,
arXiv 1312.6034), smoothed over 3 × 3 pixels and cut to what the unit sees."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vesalius.weights.receptive_field import ReceptiveField

Places = list[tuple[int, int]]
"""Row and column in the map, for each picture."""


@torch.enable_grad()
def saliency(
    maps: Callable[[Tensor], Float[Tensor, "picture row column"]],
    pixels: Float[Tensor, "picture channel height width"],
    places: Places,
    *,
    field: ReceptiveField,
) -> Float[Tensor, "picture 1 side side"]:
    """`maps` computes a unit's map from pixels; its gradient is that of its value at each picture's place."""
    shown = pixels.detach().clone().requires_grad_()
    at = torch.arange(len(places)), *(torch.tensor(part) for part in zip(*places))
    (gradient,) = torch.autograd.grad(maps(shown)[at].sum(), shown)
    return F.avg_pool2d(seen(gradient, places, field=field).norm(dim=1, keepdim=True), 3, 1, 1)


def seen(
    pixels: Float[Tensor, "picture channel height width"],
    places: Places,
    *,
    field: ReceptiveField,
    outside: float = 0.0,
) -> Float[Tensor, "picture channel side side"]:
    """What each place sees of its picture, `outside` where it looks beyond."""
    size, cut = field.size, []
    for picture, place in zip(F.pad(pixels, (size,) * 4, value=outside), places):
        top, left = (edge + size for edge in field.box(*place)[:2])
        cut.append(picture[:, top : top + size, left : left + size])
    return torch.stack(cut)


def alike(first: Float[Tensor, "picture 1 side side"], second: Float[Tensor, "picture 1 side side"]) -> float:
    """The mean over pictures of the correlation over pixels; 0 of a map that is nothing."""
    pairs = torch.stack([first.flatten(1), second.flatten(1)], 1)
    return torch.stack([torch.corrcoef(pair)[0, 1].nan_to_num(0.0) for pair in pairs]).mean().item()
