"""Components of activations: codes that are linear in the activations (PCA, ICA), or their best non-negative parts.

A dictionary of `Components` computes codes = (x − mean) · read and x̂ = mean + codes · write; one of `Parts` the codes
≥ 0 for which codes · write is nearest to x. `about` says in JSON how they were found.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from vesalius.dictionaries import stored
from vesalius.dictionaries.feature import Feature
from vesalius.dictionaries.rows import Rows
from vesalius.errors import VesaliusError

SWEEPS = 100
"""Of coordinate descent, to the best non-negative codes."""


@dataclass(frozen=True, eq=False)
class Components:
    """Directions that are read and written, around a mean.

    >>> halves = Components("neurons@0", torch.eye(2), torch.eye(2), torch.ones(2))
    >>> halves.encode(torch.tensor([3.0, 1.0])).tolist(), halves.decode(torch.tensor([2.0, 0.0])).tolist()
    ([2.0, 0.0], [3.0, 1.0])
    """

    site: str
    read: Float[Tensor, "width component"]
    write: Float[Tensor, "component width"]
    mean: Float[Tensor, " width"]
    name: str = "component"
    about: dict = field(default_factory=dict)

    @property
    def latents(self) -> int:
        return len(self.write)

    @property
    def width(self) -> int:
        """Units of the site."""
        return len(self.mean)

    def __len__(self) -> int:
        return self.latents

    def __repr__(self) -> str:
        return f"{self.name} ({self.latents} components, {self.site})"

    def __getitem__(self, index: int) -> Feature:
        return Feature(
            self.site,
            checked(index, self.latents),
            read=self.read[:, index],
            write=self.write[index],
            label=f"{self.name}[{index}]",
            nonlinear=lambda acts: (acts.to(self.mean) - self.mean) @ self.read[:, index],
        )

    def encode(self, acts: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch component"]:
        return (fitting(acts, self.width, self.site).to(self.mean) - self.mean) @ self.read

    def decode(self, codes: Float[Tensor, "*batch component"]) -> Float[Tensor, "*batch width"]:
        return codes @ self.write + self.mean

    @cached_property
    def hash(self) -> str:
        """sha256 over all numbers and the site."""
        return stored.hash_of(self.site, [("", part) for part in (self.read, self.write, self.mean)])

    def save(self, file: str | Path) -> Path:
        """Write a .safetensors file, under a temporary name until it is whole."""
        described = {"site": self.site, "name": self.name, "about": self.about}
        tensors = {"read": self.read, "write": self.write, "mean": self.mean}
        return stored.write(file, "components", described, tensors)

    @classmethod
    def load(cls, file: str | Path) -> "Components":
        """Read what `save` wrote. Raises VesaliusError if it is not of this kind."""
        described, tensors = stored.read(file, "components", called="components")
        return cls(**described, **tensors)


@dataclass(frozen=True, eq=False)
class Parts:
    """Directions that are only ever added up, of activations that are never negative.

    >>> parts = Parts("neurons@0", torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 2.0]]))
    >>> parts.encode(torch.tensor([3.0, 3.0, 4.0])).tolist()
    [3.0, 2.0]
    """

    site: str
    write: Float[Tensor, "part width"]
    name: str = "part"
    about: dict = field(default_factory=dict)

    @property
    def latents(self) -> int:
        return len(self.write)

    @property
    def width(self) -> int:
        """Units of the site."""
        return self.write.shape[1]

    def __len__(self) -> int:
        return self.latents

    def __repr__(self) -> str:
        return f"{self.name} ({self.latents} parts, {self.site})"

    def __getitem__(self, index: int) -> Feature:
        return Feature(
            self.site,
            checked(index, self.latents),
            read=self.write[index],
            write=self.write[index],
            label=f"{self.name}[{index}]",
            nonlinear=lambda acts: self.encode(acts)[..., index],
        )

    def encode(self, acts: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch part"]:
        rows = fitting(acts, self.width, self.site).to(self.write)
        return nonnegative_codes(rows.reshape(-1, self.width), self.write, sweeps=SWEEPS).reshape(
            *acts.shape[:-1], -1
        )

    def decode(self, codes: Float[Tensor, "*batch part"]) -> Float[Tensor, "*batch width"]:
        return codes @ self.write

    @cached_property
    def hash(self) -> str:
        """sha256 over all numbers and the site."""
        return stored.hash_of(self.site, [("", self.write)])

    def save(self, file: str | Path) -> Path:
        """Write a .safetensors file, under a temporary name until it is whole."""
        described = {"site": self.site, "name": self.name, "about": self.about}
        return stored.write(file, "parts", described, {"write": self.write})

    @classmethod
    def load(cls, file: str | Path) -> "Parts":
        """Read what `save` wrote. Raises VesaliusError if it is not of this kind."""
        described, tensors = stored.read(file, "parts", called="parts")
        return cls(**described, **tensors)


def nonnegative_codes(
    rows: Float[Tensor, "row width"],
    write: Float[Tensor, "part width"],
    *,
    sweeps: int,
    start: Float[Tensor, "row part"] | None = None,
) -> Float[Tensor, "row part"]:
    """The codes ≥ 0 that come nearest, one part after another (HALS, Cichocki & Phan 2009); 0 for parts of zeros."""
    reading, overlap = rows @ write.T, write @ write.T
    codes = reading.new_zeros(reading.shape) if start is None else start.clone()
    for _ in range(sweeps):
        before = codes.clone()
        for part in range(len(write)):
            if overlap[part, part] > 0:
                rest = (reading[:, part] - codes @ overlap[part]) / overlap[part, part]
                codes[:, part] = (codes[:, part] + rest).clamp(min=0)
        if (codes - before).abs().max() <= 1e-6 * codes.abs().max():
            break
    return codes


def sampled(rows: Rows, count: int, *, seed: int) -> Float[Tensor, "row width"]:
    """At most so many rows of the first site, none twice. Raises VesaliusError if one is not finite."""
    size = min(count, len(rows), 8192)
    steps = min(count, len(rows)) // size
    found = torch.cat([rows.batch(step, size, seed=seed)[0] for step in range(steps)]).float()
    if not found.isfinite().all():
        raise VesaliusError(f"activations of '{rows.sites[0]}' hold NaN or infinite values; drop those rows")
    return found


def checked(index: int, latents: int) -> int:
    if not 0 <= index < latents:
        raise VesaliusError(f"component {index} was asked for; this dictionary has 0 to {latents - 1}")
    return index


def fitting(acts: Tensor, width: int, site: str) -> Tensor:
    if acts.shape[-1] != width:
        raise VesaliusError(
            f"activations of {acts.shape[-1]} units were given to a dictionary of {width} at '{site}'"
        )
    return acts
