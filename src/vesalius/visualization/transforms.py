"""Transforms: how a picture is moved before each step, so that only what survives it is kept.

Every list here, jitter, scaling, rotation and jitter again on a padded picture, is one affine map: it is drawn for
all steps at once from a seeded generator and applied to a whole batch by a single resampling, each picture by its
own. What comes from beyond the picture's border is grey.

`standard`  the published list (Olah, Mordvintsev & Schubert 2017, distill.pub/2017/feature-visualization, footnote)
`lucid`     Lucid's own default, which scales and rotates more
`oriented`  `standard` without rotation: rotations and flips blur what a unit of one orientation codes
`crops`     random windows, large at first and small at the end, with noise (Fel et al. 2023, arXiv 2306.06805)
`none`      the picture as it is
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from vesalius.errors import VesaliusError, nearest


@dataclass(frozen=True)
class Transforms:
    """Ranges from which each step draws a shift in pixels, a scale and a rotation in degrees."""

    jitter: tuple[int, ...] = ()
    """Each entry is one jitter: a shift of a whole number of pixels, by up to half of it either way."""
    scales: tuple[float, ...] = (1.0,)
    rotations: tuple[float, ...] = (0.0,)
    windows: tuple[float, float] | None = None
    """Share of the picture's side that a random window spans, at the first step and at the last."""
    noise: float = 0.0
    """Standard deviation of noise added to every pixel; 1 is the range of the pixels."""

    def draw(
        self, steps: int, *, size: tuple[int, int], generator: torch.Generator
    ) -> Float[Tensor, "step 2 3"]:
        """The affine maps of all steps of one picture, as `affine_grid` takes them."""
        shift = torch.zeros(steps, 2)
        for pixels in self.jitter:
            shift += torch.randint(pixels + 1, (steps, 2), generator=generator) - pixels // 2
        shift = shift * 2 / torch.tensor([size[1], size[0]])  # the grid runs from -1 to 1 along x, y
        scale = _picked(self.scales, steps, generator)
        angle = _picked(self.rotations, steps, generator).deg2rad()
        if self.windows is not None:
            widest, narrowest = self.windows
            side = torch.linspace(widest, narrowest, steps)
            side = side * (0.9 + 0.2 * torch.rand(steps, generator=generator))
            scale = scale / side
            shift += (torch.rand(steps, 2, generator=generator) * 2 - 1) * (1 - side[:, None]).clamp_min(0)
        aspect = size[0] / size[1]
        cosine, sine = angle.cos() / scale, angle.sin() / scale
        rows = [
            torch.stack([cosine, sine * aspect, shift[:, 0]], 1),
            torch.stack([-sine / aspect, cosine, shift[:, 1]], 1),
        ]
        return torch.stack(rows, 1)


PRESETS: Mapping[str, Transforms] = {
    "standard": Transforms((16, 8), (1, 0.975, 1.025, 0.95, 1.05), tuple(range(-5, 6))),
    "lucid": Transforms((8, 4), tuple(1 + (i - 5) / 50 for i in range(11)), (*range(-10, 11), *[0] * 5)),
    "oriented": Transforms((16, 8), (1, 0.975, 1.025, 0.95, 1.05)),
    "crops": Transforms(windows=(0.5, 0.25), noise=0.08),
    "none": Transforms(),
}


def preset(name: "str | Transforms") -> Transforms:
    """A list of transforms by name; one made by hand is handed back. Raises VesaliusError for an unknown name."""
    if isinstance(name, Transforms):
        return name
    if name not in PRESETS:
        raise VesaliusError(
            f"there are no transforms '{name}'; expected {', '.join(PRESETS)}{nearest(name, PRESETS)}"
        )
    return PRESETS[name]


def transformed(
    pictures: Float[Tensor, "batch channel height width"],
    maps: Float[Tensor, "batch 2 3"],
    *,
    border: float = 0.5,
) -> Float[Tensor, "batch channel height width"]:
    """Every picture under its own affine map, bilinear; beyond its edges is `border`. Differentiable."""
    if bool((maps == torch.eye(2, 3)).all()):
        return pictures
    grid = affine_grid(maps.to(pictures), list(pictures.shape), align_corners=False)
    return grid_sample(pictures - border, grid, align_corners=False) + border


def _picked(values: tuple[float, ...], steps: int, generator: torch.Generator) -> Float[Tensor, " step"]:
    return torch.tensor(values, dtype=torch.float32)[
        torch.randint(len(values), (steps,), generator=generator)
    ]
