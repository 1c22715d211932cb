"""Sparse codes: for each row, which latents are active and how strongly."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Codes:
    """What is active of many rows, row after row (CSR).

    >>> codes = Codes.of(torch.tensor([[0.0, 2.0], [0.0, 0.0], [1.0, 3.0]]))
    >>> codes.starts.tolist(), codes.latents.tolist(), codes.values.tolist()
    ([0, 1, 1, 3], [1, 0, 1], [2.0, 1.0, 3.0])
    """

    starts: Int[Tensor, " row_and_one"]
    """Where each row begins among the active ones, and their number."""
    latents: Int[Tensor, " active"]
    values: Float[Tensor, " active"]
    width: int
    """How many latents there are."""

    @classmethod
    def of(cls, dense: Float[Tensor, "row latent"]) -> "Codes":
        """The entries that are not 0."""
        rows, latents = dense.nonzero(as_tuple=True)
        counts = rows.bincount(minlength=len(dense))
        return cls(_starts(counts), latents, dense[rows, latents], dense.shape[1])

    @classmethod
    def joined(cls, parts: "list[Codes]") -> "Codes":
        """Rows of one dictionary, one part after another."""
        counts = torch.cat([part.counts for part in parts])
        latents, values = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("latents", "values")
        )
        return cls(_starts(counts), latents, values, parts[0].width)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def counts(self) -> Int[Tensor, " row"]:
        """How many latents are active in each row."""
        return self.starts.diff()

    @cached_property
    def rows(self) -> Int[Tensor, " active"]:
        """The row of each active entry."""
        return torch.repeat_interleave(self.counts)

    def dense(self) -> Float[Tensor, "row latent"]:
        full = self.values.new_zeros(len(self), self.width)
        full[self.rows, self.latents] = self.values
        return full


def _starts(counts: Int[Tensor, " row"]) -> Int[Tensor, " row_and_one"]:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
