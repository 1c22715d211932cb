"""Covariance and density of the units of a site, while activations stream by; reducers like those of `reducers`."""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor


class Covariance:
    """Number, mean and covariance of the values of all units, in double precision (Chan, Golub and LeVeque 1983)."""

    def __init__(self, units: int) -> None:
        self.count = torch.zeros((), dtype=torch.long)
        self.mean = torch.zeros(units, dtype=torch.float64)
        self.products = torch.zeros(units, units, dtype=torch.float64)
        """Sum of products of deviations from the mean."""

    @property
    def covariance(self) -> Float[Tensor, "unit unit"]:
        """Of the values seen, as a population."""
        return self.products / self.count.clamp(min=1)

    def add(self, values: Float[Tensor, "example unit position"], examples: Int[Tensor, " example"]) -> None:
        rows = rearrange(values, "example unit position -> (example position) unit").float()
        mean = rows.mean(0)
        centred = rows - mean
        step, count, total = mean.cpu().double() - self.mean, len(rows), int(self.count) + len(rows)
        self.products += (centred.T @ centred).cpu().double()
        self.products += step.outer(step) * (int(self.count) * count / total)
        self.mean += step * (count / total)
        self.count += count


class Density:
    """How often each unit is active, that is above 0."""

    def __init__(self, units: int) -> None:
        self.count = torch.zeros((), dtype=torch.long)
        self.active = torch.zeros(units, dtype=torch.long)

    @property
    def density(self) -> Float[Tensor, " unit"]:
        """Share of the values seen: 0 is never, 1 is always."""
        return self.active.double() / self.count.clamp(min=1)

    def add(self, values: Float[Tensor, "example unit position"], examples: Int[Tensor, " example"]) -> None:
        self.active += (values > 0).sum((0, 2)).cpu()
        self.count += len(values) * values.shape[2]
