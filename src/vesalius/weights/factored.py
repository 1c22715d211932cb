"""A matrix kept as the product of a tall and a wide factor, and its algebra without ever multiplying them
out.

The circuits of a transformer (Elhage et al. 2021, transformer-circuits.pub/2021/framework) are products of
weights whose rank is at most d_head while their sides are d_model or d_vocab: W_E W_V W_O W_U of GPT-2 small
has 2.5e9 entries and rank 64. Everything one asks of such a product can be had from the factors:

1. a product of two of them meets in an r x r matrix, and keeps the smaller of the two ranks;
2. singular values are those of R_left R_rightᵀ, from a QR of each factor (r x r);
3. the non-zero eigenvalues of left·right are those of right·left (r x r).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from vesalius.errors import VesaliusError
from vesalius.weights.top_k import Centre, Ranked, top_k


class SVD(NamedTuple):
    """matrix = U · diag(S) · Vh: the columns of U and the rows of Vh are orthonormal, S falls."""

    U: Float[Tensor, "*batch m r"]
    S: Float[Tensor, "*batch r"]
    Vh: Float[Tensor, "*batch r n"]


@dataclass(frozen=True, eq=False)
class Factored:
    """The matrix left · right of rank at most r; leading dimensions are a batch of such matrices.

    Rows are what is read (x · matrix in row vectors), columns what is written.

    >>> circuit = Factored(torch.eye(3)[:, :1], torch.tensor([[1.0, 2.0, 3.0]]))
    >>> circuit.dense()[0], circuit.norm().item() ** 2
    (tensor([1., 2., 3.]), 14.0...)
    """

    left: Float[Tensor, "*batch m r"]
    right: Float[Tensor, "... r_right n"]

    def __post_init__(self) -> None:
        if self.left.shape[-1] != self.right.shape[-2]:
            raise VesaliusError(
                f"Factors of shapes {list(self.left.shape)} and {list(self.right.shape)} have no product: "
                f"the last size of the left, {self.left.shape[-1]}, must be the last but one of the right."
            )

        if self.left.shape[:-2] != self.right.shape[:-2]:  # what has no batch is shared by all
            batch = torch.broadcast_tensors(self.left[..., 0, 0], self.right[..., 0, 0])[0].shape
            object.__setattr__(self, "left", self.left.expand(*batch, -1, -1))
            object.__setattr__(self, "right", self.right.expand(*batch, -1, -1))

    @property
    def shape(self) -> torch.Size:
        """Shape of the product, batch first."""
        return torch.Size([*self.left.shape[:-1], self.right.shape[-1]])

    @property
    def rank(self) -> int:
        """The inner size r, an upper bound of the rank."""
        return self.left.shape[-1]

    @property
    def T(self) -> "Factored":
        """Transpose of every matrix in the batch."""
        return Factored(self.right.mT, self.left.mT)

    def __getitem__(self, index: int | slice | tuple | Tensor) -> "Factored":
        """Choose within the batch: `all_ov(model, 0)[3]` is head 3."""
        if len(self.shape) == 2:
            raise VesaliusError(
                f"A single matrix {list(self.shape)} has no batch to index; rows and columns do."
            )
        return Factored(self.left[index], self.right[index])

    def __neg__(self) -> "Factored":
        return Factored(-self.left, self.right)

    def __matmul__(self, other: "Factored | Tensor") -> "Factored":
        """Matrix product; two factored matrices keep the smaller of their inner ranks."""
        if not isinstance(other, Factored):
            return Factored(self.left, self.right @ other)
        middle = self.right @ other.left
        if self.rank <= other.rank:
            return Factored(self.left, middle @ other.right)
        return Factored(self.left @ middle, other.right)

    def __rmatmul__(self, other: Tensor) -> "Factored":
        return Factored(other @ self.left, self.right)

    def svd(self) -> SVD:
        """Singular value decomposition, through a QR of each factor (r x r in the middle)."""
        Q_left, R_left = torch.linalg.qr(self.left)
        Q_right, R_right = torch.linalg.qr(self.right.mT)
        U, S, Vh = torch.linalg.svd(R_left @ R_right.mT, full_matrices=False)
        return SVD(Q_left @ U, S, Vh @ Q_right.mT)

    def eigenvalues(self) -> Complex[Tensor, "*batch r"]:
        """The eigenvalues that can differ from 0, min(r, n) of them, from the small product right · left."""
        rows, columns = self.shape[-2:]
        if rows != columns:
            raise VesaliusError(f"Eigenvalues need a square matrix; this one is {rows} x {columns}.")
        return torch.linalg.eigvals(self.right @ self.left if self.rank <= rows else self.dense())

    def singular_values(self) -> Float[Tensor, "*batch s"]:
        """The singular values alone, for half the work of `svd`."""
        return torch.linalg.svdvals(self._small())

    def norm(self) -> Float[Tensor, "*batch"]:
        """Frobenius norm, as that of R_left R_rightᵀ: as accurate as that of the product itself."""
        return torch.linalg.matrix_norm(self._small())

    def _small(self) -> Float[Tensor, "*batch _ _"]:
        """A small matrix of the same singular values, R_left R_rightᵀ of the factors' QR decompositions."""
        R_left = torch.linalg.qr(self.left, mode="r").R
        R_right = torch.linalg.qr(self.right.mT, mode="r").R
        return R_left @ R_right.mT

    def rows(self, index: int | Sequence[int] | slice | Int[Tensor, " chosen"]) -> Float[Tensor, "..."]:
        """Those rows of the product, multiplied out."""
        chosen = self.left[..., index, :]
        return (
            (chosen[..., None, :] @ self.right)[..., 0, :] if isinstance(index, int) else chosen @ self.right
        )

    def columns(self, index: int | Sequence[int] | slice | Int[Tensor, " chosen"]) -> Float[Tensor, "..."]:
        """Those columns of the product, multiplied out; several of them are the last axis."""
        chosen = self.T.rows(index)
        return chosen if isinstance(index, int) else chosen.mT

    def diagonal(self) -> Float[Tensor, "*batch n"]:
        """Entries (i, i): what every token does to itself."""
        rows, columns = self.shape[-2:]
        if rows != columns:
            raise VesaliusError(f"A diagonal needs a square matrix; this one is {rows} x {columns}.")
        return torch.einsum("...nr,...rn->...n", self.left, self.right)

    def centred(self, axis: Centre | None) -> "Factored":
        """Without the mean over columns (of every row), over rows (of every column), or both; None leaves it.

        The mean over columns is what softmax ignores: over outputs in an OV circuit, over keys in a QK
        circuit. "both" also takes out what every source, or every query, has in common.
        """
        left, right = self.left, self.right
        if axis in ("rows", "both"):
            left = left - left.mean(-2, keepdim=True)
        if axis in ("columns", "both"):
            right = right - right.mean(-1, keepdim=True)
        return Factored(left, right)

    def top_k(
        self, k: int, *, along: Literal["rows", "columns"] = "rows", centre: Centre | None = "columns"
    ) -> Ranked:
        """The k largest entries of every row, or of every column; see `vesalius.weights.top_k.top_k`."""
        return top_k(self, k, along=along, centre=centre)

    def dense(self) -> Float[Tensor, "*batch m n"]:
        """The product itself, multiplied out: for tests and small vocabularies."""
        return self.left @ self.right

    @staticmethod
    def sum(terms: "Sequence[Factored]") -> "Factored":
        """Sum of matrices of one shape; inner ranks add up, nothing is approximated."""
        shapes = {tuple(term.shape) for term in terms}
        if len(shapes) != 1:
            raise VesaliusError(
                f"A sum needs matrices of one shape; given {len(terms)} of shapes {sorted(shapes)}."
            )
        return Factored(
            torch.cat([term.left for term in terms], -1), torch.cat([term.right for term in terms], -2)
        )
