"""The products of sparse dictionary learning, none of which touches a latent that is not active.

Once the dense product x W_enc has said which latents are active, all that follows needs only those: their values, the
sum of what they write, and the gradients of both. Gao et al. 2024 (arXiv 2406.04093) describe the saving; here each
product is one call of a routine that CPU and GPU have:

1. the sum of what is written, row after row: `embedding_bag`;
2. the gradient of the codes, inner products at the active places alone: `sampled_addmm`;
3. the gradients of both weight matrices, sums over the rows in which a latent is active: `embedding_bag` again, on the
   active places in the order of the latents;
4. the gradient of the bias before the encoder, one product of a vector with a matrix instead of two matrices.

A rectifier begins by letting half pass; there whole matrices are faster, and no list of the active places is made.
Matrices are held with one row for each latent.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

CROWDED, CROWDED_INNER = 0.35, 0.2
"""Shares of active latents from which on whole matrices are faster: of sums, and of inner products at active places."""


@dataclass(frozen=True, eq=False)
class Support:
    """Which latents are active in which rows, row after row (CSR without values)."""

    starts: Int[Tensor, " row_and_one"]
    rows: Int[Tensor, " active"]
    latents: Int[Tensor, " active"]
    width: int
    """How many latents there are."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @classmethod
    def of_mask(cls, mask: Bool[Tensor, "row latent"]) -> "Support":
        """The places where `mask` is true."""
        places = mask.flatten().nonzero().flatten()
        rows = places.div(mask.shape[1], rounding_mode="floor")
        return cls(_starts(rows, len(mask)), rows, places - rows * mask.shape[1], mask.shape[1])

    @classmethod
    def of_latents(cls, latents: Int[Tensor, "row k"], width: int) -> "Support":
        """The same number of latents in each row."""
        count, k = latents.shape
        starts = torch.arange(0, count * k + 1, k, device=latents.device)
        rows = torch.arange(count, device=latents.device).repeat_interleave(k, output_size=count * k)
        return cls(starts, rows, latents.flatten(), width)

    @classmethod
    def joined(cls, parts: "Sequence[Support]") -> "Support":
        """Rows of one dictionary, one part after another."""
        if len(parts) == 1:
            return parts[0]
        if all(isinstance(part, Everywhere) for part in parts):
            return Everywhere(sum(map(len, parts)), parts[0].width, parts[0].device)
        starts, first, active = [parts[0].starts[:1]], 0, 0
        rows = []
        for part in parts:
            starts.append(part.starts[1:] + active)
            rows.append(part.rows + first)
            first, active = first + len(part), active + len(part.latents)
        return cls(
            torch.cat(starts), torch.cat(rows), torch.cat([part.latents for part in parts]), parts[0].width
        )

    @cached_property
    def by_latent(
        self,
    ) -> tuple[Int[Tensor, " active"], Int[Tensor, " active"], Int[Tensor, " latent_and_one"]]:
        """The active places in the order of the latents: their numbers, their rows, and where each latent begins."""
        ordered, order = self.latents.to(torch.int32).sort(stable=True)
        return order, self.rows.index_select(0, order), _starts(ordered, self.width)

    @cached_property
    def places(self) -> Int[Tensor, " active"]:
        """The numbers of the active places in the matrix of all."""
        return self.rows * self.width + self.latents

    @property
    def share(self) -> float:
        """Of all places, how many are active."""
        return len(self.latents) / (len(self) * self.width)

    def of(self, dense: Float[Tensor, "row latent"]) -> Float[Tensor, " active"]:
        """The entries at the active places."""
        return dense.flatten().index_select(0, self.places)

    def dense(self, values: Float[Tensor, " active"]) -> Float[Tensor, "row latent"]:
        """Values at the active places, and 0 elsewhere."""
        full = values.new_zeros(len(self) * self.width)
        return full.index_copy_(0, self.places, values).view(len(self), self.width)

    def sums(self, values: Float[Tensor, " active"]) -> Float[Tensor, " latent"]:
        """The sum of the values of each latent."""
        return values.new_zeros(self.width).index_add(0, self.latents, values)

    def row_sums(self, values: Float[Tensor, " active"]) -> Float[Tensor, " row"]:
        """The sum of the values of each row."""
        return values.new_zeros(len(self)).index_add(0, self.rows, values)


class Everywhere(Support):
    """Every latent in every row: the codes of those that are not active are zeros among the others."""

    def __init__(self, count: int, width: int, device: torch.device) -> None:
        self.__dict__.update(count=count, width=width, device=device)

    def __len__(self) -> int:
        return self.count

    @cached_property
    def starts(self) -> Int[Tensor, " row_and_one"]:
        return torch.arange(self.count + 1, device=self.device) * self.width

    @cached_property
    def rows(self) -> Int[Tensor, " active"]:
        return torch.arange(self.count, device=self.device).repeat_interleave(self.width)

    @cached_property
    def latents(self) -> Int[Tensor, " active"]:
        return torch.arange(self.width, device=self.device).repeat(self.count)

    @property
    def share(self) -> float:
        return 1.0

    def of(self, dense: Float[Tensor, "row latent"]) -> Float[Tensor, " active"]:
        return dense.flatten()

    def dense(self, values: Float[Tensor, " active"]) -> Float[Tensor, "row latent"]:
        return values.view(self.count, self.width)

    def sums(self, values: Float[Tensor, " active"]) -> Float[Tensor, " latent"]:
        return self.dense(values).sum(0)

    def row_sums(self, values: Float[Tensor, " active"]) -> Float[Tensor, " row"]:
        return self.dense(values).sum(1)


def preactivations(
    support: Support,
    values: Float[Tensor, " active"],
    centred: Float[Tensor, "row source"],
    encoder: Float[Tensor, "latent source"],
    bias: Float[Tensor, " latent"],
    centre: Float[Tensor, " source"] | None,
) -> Float[Tensor, " active"]:
    """`values`, which are (x − centre) Wᵀ + bias at the active places, as a function of the weights."""
    return _Preactivations.apply(values, centred, encoder, bias, centre, support)


def decode(
    support: Support, codes: Float[Tensor, " active"], decoder: Float[Tensor, "latent target"]
) -> Float[Tensor, "row target"]:
    """The sum of what the active latents write in each row."""
    return _Decode.apply(codes, decoder, support)


def inner(
    support: Support, rows: Float[Tensor, "row width"], latents: Float[Tensor, "latent width"]
) -> Float[Tensor, " active"]:
    """The inner product of a row and a latent's vector at each active place."""
    if support.share > CROWDED_INNER:
        return support.of(rows @ latents.T)
    if not len(support.latents):
        return rows.new_zeros(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sparse CSR is "in beta state"
        pattern = torch.sparse_csr_tensor(
            support.starts,
            support.latents,
            rows.new_zeros(len(support.latents)),
            (len(support), support.width),
        )
    return torch.sparse.sampled_addmm(pattern, rows, latents.T, beta=0.0).values()


class _Preactivations(Function):
    @staticmethod
    def forward(ctx, values, centred, encoder, bias, centre, support):
        ctx.support = support
        ctx.save_for_backward(centred, encoder)
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        centred, encoder = ctx.saved_tensors
        support: Support = ctx.support
        bias = support.sums(grad)
        centre = -(bias @ encoder) if ctx.needs_input_grad[4] else None
        return None, None, _over_rows(support, grad, centred), bias, centre, None


class _Decode(Function):
    @staticmethod
    def forward(ctx, codes, decoder, support):
        ctx.support = support
        ctx.save_for_backward(codes, decoder)
        if support.share > CROWDED:
            return support.dense(codes) @ decoder
        return _bags(support.latents, decoder, support.starts, codes)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        codes, decoder = ctx.saved_tensors
        support: Support = ctx.support
        grad = grad.contiguous()
        of_codes = inner(support, grad, decoder) if ctx.needs_input_grad[0] else None
        of_decoder = _over_rows(support, codes, grad) if ctx.needs_input_grad[1] else None
        return of_codes, of_decoder, None


def _over_rows(
    support: Support, values: Float[Tensor, " active"], rows: Float[Tensor, "row width"]
) -> Float[Tensor, "latent width"]:
    """For each latent, the sum of the rows in which it is active, each times its value there."""
    if support.share > CROWDED:
        return support.dense(values).T @ rows
    order, of_row, starts = support.by_latent
    return _bags(of_row, rows, starts, values.index_select(0, order))


def _bags(
    index: Int[Tensor, " active"],
    table: Float[Tensor, "entry width"],
    starts: Int[Tensor, " bag_and_one"],
    weights: Float[Tensor, " active"],
) -> Float[Tensor, "bag width"]:
    if not len(index):
        return table.new_zeros(len(starts) - 1, table.shape[1])
    return embedding_bag(index, table, starts[:-1], mode="sum", per_sample_weights=weights)


def _starts(ordered: Int[Tensor, " active"], count: int) -> Int[Tensor, " count_and_one"]:
    """Where each of `count` numbers begins in an ordered list of them."""
    return torch.searchsorted(ordered, torch.arange(count + 1, device=ordered.device, dtype=ordered.dtype))
