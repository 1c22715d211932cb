"""Rows to learn from: activations of one site or of several at the same places, batch by batch.

A batch is a pure function of the step, so that a run that was stopped goes on with the rows it would have seen, and
several processes share an epoch without speaking to each other.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vesalius.errors import VesaliusError


@runtime_checkable
class Rows(Protocol):
    """Activations that can be asked for by the step."""

    @property
    def sites(self) -> tuple[str, ...]: ...
    @property
    def widths(self) -> tuple[int, ...]: ...
    @property
    def about(self) -> dict:
        """Which model they are of and what it read, in JSON."""
        ...

    def __len__(self) -> int: ...
    def batch(
        self, step: int, size: int, *, seed: int = 0, rank: int = 0, world: int = 1
    ) -> tuple[Float[Tensor, "row width"], ...]:
        """`size` rows of each site, the same of all; within an epoch no row comes twice, on no rank."""
        ...


@dataclass(frozen=True, eq=False)
class TensorRows:
    """Rows that lie in memory.

    >>> rows = TensorRows(("neurons@0",), (torch.arange(12.0).view(6, 2),))
    >>> sorted(torch.cat([rows.batch(step, 2)[0] for step in range(3)])[:, 0].tolist())
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """

    sites: tuple[str, ...]
    tensors: tuple[Float[Tensor, "row width"], ...]
    about: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {len(tensor) for tensor in self.tensors}
        if len(self.sites) != len(self.tensors) or len(lengths) != 1:
            raise VesaliusError(
                f"{len(self.sites)} sites were given {len(self.tensors)} tensors of {sorted(lengths)} rows; "
                "expected one for each, of the same number"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(tensor.shape[1] for tensor in self.tensors)

    def __len__(self) -> int:
        return len(self.tensors[0])

    def batch(
        self, step: int, size: int, *, seed: int = 0, rank: int = 0, world: int = 1
    ) -> tuple[Float[Tensor, "row width"], ...]:
        """`size` rows of each site; what an epoch has left over after whole batches is not seen in it."""
        steps = len(self) // (size * world)
        if not steps:
            raise VesaliusError(
                f"a batch of {size} on {world} ranks was asked for; there are {len(self)} rows"
            )
        epoch, place = divmod(step, steps)
        first = (place * world + rank) * size
        chosen = order(len(self), seed, epoch)[first : first + size]
        return tuple(tensor.index_select(0, chosen).float() for tensor in self.tensors)


@lru_cache(maxsize=2)
def order(rows: int, seed: int, epoch: int) -> Int[Tensor, " row"]:
    """The order of an epoch."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
