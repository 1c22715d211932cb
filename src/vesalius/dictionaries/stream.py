"""The batches of a run, by the step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius.dictionaries.rows import Rows

SAMPLE = 2**14
"""Rows that the geometric median, the scale and the variance are taken from."""


@dataclass(frozen=True)
class Stream:
    """Batches of all sites, by the step."""

    rows: Rows
    size: int
    seed: int
    device: str

    def batch(
        self, step: int, *, rank: int = 0, world: int = 1, other: int = 0
    ) -> list[Float[Tensor, "row _"]]:
        """`other` than 0: rows in another order than those that are learned from."""
        seed = self.seed + 7919 * other
        sites = self.rows.batch(step, self.size // world, seed=seed, rank=rank, world=world)
        return [site.to(self.device, torch.float32, non_blocking=True) for site in sites]

    @property
    def epoch(self) -> int:
        """Batches in which no row comes twice."""
        return len(self.rows) // self.size

    def sample(self) -> list[Float[Tensor, "row _"]]:
        count = max(1, min(self.epoch, SAMPLE // self.size))
        batches = [self.batch(step) for step in range(count)]
        return [torch.cat(site)[:SAMPLE] for site in zip(*batches)]


def joined(sites: Sequence[Float[Tensor, "row _"]], chosen: tuple[int, ...]) -> Float[Tensor, "row joined"]:
    return sites[chosen[0]] if len(chosen) == 1 else torch.cat([sites[i] for i in chosen], 1)


def scale_of(rows: Float[Tensor, "row width"], mean: Literal["none", "one", "width"]) -> Float[Tensor, ""]:
    """What to multiply with so that the mean length is as wanted."""
    if mean == "none":
        return rows.new_ones(())
    wanted = 1.0 if mean == "one" else rows.shape[1] ** 0.5
    return wanted / rows.norm(dim=1).mean().clamp(min=1e-12)
