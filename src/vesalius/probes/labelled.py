"""Activations with labels, in pieces that can be gone through again and again."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from jaxtyping import Float, Int
from torch import Tensor

from vesalius.errors import VesaliusError

PIECE = 2048
"""Rows of a piece, so that what is made of it stays in the cache."""

Piece = tuple[Float[Tensor, "layer row width"], Int[Tensor, "row target"]]


@dataclass(frozen=True, eq=False)
class Labelled:
    """The same rows at every layer, and for each row the class of every target; -1 where it is not known.

    `again` gives all pieces from the start, from memory or from a store.

    >>> import torch
    >>> labelled = Labelled.of(torch.zeros(2, 5, 3), torch.tensor([0, 1, 1, -1, 2]))
    >>> labelled.layers, labelled.width, labelled.targets, labelled.classes, labelled.rows
    (2, 3, 1, 3, 5)
    """

    again: Callable[[], Iterator[Piece]]
    pieces: int
    rows: int
    layers: int
    width: int
    targets: int
    classes: int

    @classmethod
    def of(
        cls,
        acts: Float[Tensor, "*layer row width"],
        labels: Int[Tensor, "label *target"],
        *,
        classes: int | None = None,
    ) -> "Labelled":
        """Rows that lie in memory, of one layer or of several, with one target or several.

        Every piece is spread over all rows, so that the first ones are a sample. Raises VesaliusError if there is not
        a label for each row, a label is no class, or only one class occurs.
        """
        acts = acts if acts.dim() == 3 else acts[None]
        labels = (labels if labels.dim() == 2 else labels[:, None]).to(acts.device)
        if len(labels) != acts.shape[1]:
            raise VesaliusError(
                f"{len(labels)} labels were given for {acts.shape[1]} rows; expected one each"
            )
        known = (labels.flatten().clamp(min=-1) + 1).bincount()[1:].nonzero()[:, 0].tolist()
        if len(known) < 2:
            raise VesaliusError(
                f"{len(labels)} rows have labels of {len(known)} class; a probe needs rows of two or more"
            )
        count = known[-1] + 1 if classes is None else classes
        if known[-1] >= count:
            raise VesaliusError(
                f"label {known[-1]} was given; with {count} classes they are 0 to {count - 1}"
            )
        pieces = -(-len(labels) // PIECE)

        def again() -> Iterator[Piece]:
            for first in range(pieces):
                yield acts[:, first::pieces], labels[first::pieces]

        return cls(again, pieces, len(labels), len(acts), acts.shape[2], labels.shape[1], count)

    def first(self, share: float) -> "Labelled":
        """A share of the pieces, at least one."""
        pieces = max(1, round(share * self.pieces))
        rows = self.rows * pieces // self.pieces
        again = self.again
        return Labelled(
            lambda: islice(again(), pieces), pieces, rows, self.layers, self.width, self.targets, self.classes
        )
